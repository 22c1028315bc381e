//! Death: SIGKILL of the server, the OCI runtime, init or containerd, around each call.
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
        "runtime" => scene.kill_runtime(),
        "init" => process::signal(scene.init(), Signal::SIGKILL),
        "containerd" => {
            scene.c.connection.close();
            scene.d.events.stop();
        }
        other => panic!("no victim {other}"),
    }
}
