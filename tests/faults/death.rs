//! Death: SIGKILL of the server, the OCI runtime, init or containerd, around each call; and of
//! the action `delete`.
//!
//! The moments: `before` the call; the runtime has `begun` and done nothing yet; it has `done` its
//! work, and nobody was told; the call was `sent`, where no runtime is called; `after` the answer.

use nix::sys::signal::Signal;

use crate::harness::runtime::At;
use crate::harness::{Daemon, process};
use crate::scene::{Scene, assert_events, assert_events_after_a_restart, remove};

product! { "death", super::super::run;
    server {
        create: before begun done after;
        start: begun done after;
        exec: begun done after;
        pause: begun done after;
        resume: begun done after;
        update: begun done after;
        kill: sent after;
        delete: before begun done after;
        shutdown: sent;
    }
    runtime {
        create: begun done;
        start: begun done;
        exec: begun done;
        pause: begun done;
        resume: begun done;
        update: begun done;
        delete: begun done;
    }
    init {
        create: done after;
        start: begun done after;
        exec: before begun done after;
        pause: before begun done after;
        resume: before begun done after;
        update: before begun done after;
        kill: before sent;
    }
    containerd {
        create: before begun done after;
        start: begun done after;
        exec: before begun done after;
        pause: before begun done after;
        resume: begun done after;
        update: before begun done after;
        kill: sent after;
        delete: before begun done after;
        shutdown: sent;
    }
}

pub mod action {
    //! SIGKILL of the action `delete` for a container whose server was killed, and of the runtime
    //! that it runs: the next `delete` finishes.

    use std::process::Stdio;

    use nix::sys::signal::Signal;

    use crate::harness::container::Container;
    use crate::harness::runtime::At;
    use crate::harness::{Daemon, process};
    use crate::scene::{Scene, remove};

    /// In the middle of `delete`, when the runtime has come to `at`.
    fn within(d: &Daemon, verb: &'static str, at: At, strike: impl Fn(&Scene, i32)) {
        let scene = Scene::new(d, verb);
        scene.c.kill_shim();
        let mut held = scene.runtime.hold("delete", at);
        let action = begin(d, &scene.c);
        held.reached();
        strike(&scene, action);
        held.release();
        process::wait(action, "the action delete", d.hang_timeout);
        assert_eq!(remove(&scene.c), 137);
    }

    /// Runs the action, and does not wait for it.
    fn begin(d: &Daemon, c: &Container) -> i32 {
        let mut command = d.command(&c.container, &c.bundle);
        command.arg("-bundle").arg(&c.bundle).arg("delete");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        process::spawn(&mut command).id() as i32
    }

    fn kill_action(_: &Scene, action: i32) {
        process::signal(action, Signal::SIGKILL);
    }

    fn kill_runtime(scene: &Scene, _: i32) {
        scene.runtime.kill();
    }

    faults! { "death::action";
        fn delete_of_a_created_container_is_killed(d) {
            within(d, "start", At::Before, kill_action);
        }

        fn delete_of_a_running_container_is_killed(d) {
            within(d, "kill", At::Before, kill_action);
        }

        fn delete_of_a_running_container_is_killed_when_the_runtime_has_done_it(d) {
            within(d, "kill", At::After, kill_action);
        }

        fn delete_of_a_paused_container_is_killed(d) {
            within(d, "resume", At::Before, kill_action);
        }

        fn runtime_of_the_delete_of_a_running_container_is_killed(d) {
            within(d, "kill", At::Before, kill_runtime);
        }

        fn runtime_of_the_delete_of_a_paused_container_is_killed(d) {
            within(d, "resume", At::After, kill_runtime);
        }
    }
}

/// Has `victim` die around the call `verb`, and removes the container.
fn run(d: &Daemon, victim: &str, verb: &'static str, moment: &str) {
    let scene = Scene::new(d, verb);
    match moment {
        "before" => {
            strike(&scene, victim);
            // Whatever it answers.
            if victim != "server" && victim != "containerd" {
                let _ = scene.send().wait();
            }
        }
        "sent" => {
            let call = scene.send();
            strike(&scene, victim);
            let _ = call.wait();
        }
        "begun" => strike_within(&scene, victim, At::Before),
        "done" => strike_within(&scene, victim, At::After),
        "after" => {
            scene.send().wait().expect(verb);
            strike(&scene, victim);
        }
        other => panic!("no moment {other}"),
    }
    if victim == "containerd" {
        d.events.restart();
    }
    let status = remove(&scene.c);
    if victim == "server" {
        // One that has shut down may be faster.
        assert!(
            status == 137 || verb == "shutdown",
            "the server's end: {status}"
        );
    } else {
        assert_eq!(status, 0, "the server's end");
        match victim {
            "containerd" => assert_events_after_a_restart(d, "c"),
            _ => assert_events(d, "c"),
        }
    }
}

fn strike_within(scene: &Scene, victim: &str, at: At) {
    let mut held = scene.runtime.hold(scene.verb, at);
    let call = scene.send();
    held.reached();
    strike(scene, victim);
    held.release();
    // Whatever it answers.
    let _ = call.wait();
}

fn strike(scene: &Scene, victim: &str) {
    match victim {
        // One that has shut down may be faster.
        "server" if scene.verb == "shutdown" => process::signal(scene.c.shim_pid, Signal::SIGKILL),
        "server" => scene.c.kill_shim(),
        "runtime" => scene.runtime.kill(),
        "init" => process::signal(scene.init(), Signal::SIGKILL),
        "containerd" => {
            scene.c.connection.close();
            scene.d.events.stop();
        }
        other => panic!("no victim {other}"),
    }
}
