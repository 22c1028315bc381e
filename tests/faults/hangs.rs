//! What hangs: the OCI runtime in each of its commands, FIFOs that nobody reads, loggers, log
//! files. The call's deadline passes; then the container is removed, though it still hangs.

use std::fs;
use std::time::Duration;

use containerd_shim_rs_v2::proto::{Mount, task};

use crate::harness::machine::Silent;
use crate::harness::rpc::{Code, Pending, Refused};
use crate::harness::runtime::At;
use crate::harness::{Daemon, Stdio, write_program};
use crate::scene::{Scene, assert_events, remove};

/// A client's deadline, which passes.
const DEADLINE: Duration = Duration::from_millis(500);

pub mod product {
    //! The runtime's commands.

    product! { "hangs::product", super::super::super::hang;
        runtime {
            create: begun done;
            start: begun done;
            exec: begun done;
            pause: begun done;
            resume: begun done;
            update: begun done;
            delete: begun done;
        }
    }
}

/// Has the runtime hang at `moment` of `verb`, whose client leaves at its deadline.
fn hang(d: &Daemon, _runtime: &str, verb: &'static str, moment: &str) {
    let scene = Scene::new(d, verb);
    let at = if moment == "begun" {
        At::Before
    } else {
        At::After
    };
    let mut held = scene.runtime.hold(verb, at);
    let client = scene.c.reconnect();
    let call = scene.send_over(&client);
    held.reached();
    let asked = std::time::Instant::now();
    // Answered in the meantime: what is known of the container, or that nothing is.
    let _ = scene.c.state();
    assert!(
        asked.elapsed() < d.hang_timeout / 2,
        "no answer to State within half of the limit"
    );
    client.close();
    let _ = call.wait();
    // The action and the call to delete run the same command.
    let held = (verb != "delete").then_some(held);
    assert_eq!(remove(&scene.c), 0, "the server's end");
    assert_events(d, "c");
    drop(held);
}

fn both(uri: &str) -> Stdio {
    Stdio {
        stdout: uri.into(),
        stderr: uri.into(),
        ..Default::default()
    }
}

/// Create with this stdio does not succeed within its deadline.
fn create_hangs(d: &Daemon, stdio: Stdio) {
    let c = d.container("c", &["sleep", "inf"]).stdio(stdio).shim();
    let create: Pending<task::CreateTaskResponse> =
        c.connection
            .send(d.api.service(), "Create", &c.create_request(), DEADLINE);
    assert!(create.wait().is_err(), "Create was done");
    assert_eq!(remove(&c), 0, "the server's end");
    assert_events(d, "c");
}

/// Nor does it with this mount for a rootfs; what it waits for goes on when `hold` is dropped.
fn mount_hangs<T>(d: &Daemon, mount: Mount, hold: T) {
    let c = d
        .container("c", &["sleep", "inf"])
        .mounts(vec![mount])
        .shim();
    let create: Pending<task::CreateTaskResponse> =
        c.connection
            .send(d.api.service(), "Create", &c.create_request(), DEADLINE);
    assert!(create.wait().is_err(), "Create was done");
    c.state().refused(Code::NOT_FOUND, "");
    drop(hold);
    assert_eq!(remove(&c), 0, "the server's end");
    assert_events(d, "c");
}

/// A file system that does not answer, and a path in it.
fn silent(d: &Daemon) -> (Silent, String) {
    let point = d.path("silent");
    fs::create_dir(&point).expect("make a mount point");
    let silent = Silent::mounted(&point);
    (silent, point.join("file").display().to_string())
}

/// So does the start of an exec; init is killed meanwhile.
fn exec_hangs(d: &Daemon, stdio: &Stdio) {
    let c = d.running("c");
    let e = c.exec_with("e", &["sleep", "inf"], stdio).expect("Exec");
    let start = e.start_pending();
    c.kill(9).expect("Kill");
    assert_eq!(c.exit_status(), 137);
    assert!(start.wait().is_err(), "the exec was started");
    assert_eq!(remove(&c), 0, "the server's end");
    assert_events(d, "c");
}

/// A logger that does nothing.
fn silent_logger(d: &Daemon) -> Stdio {
    let path = d.path("silent");
    write_program(&path, "exec /bin/sleep 1000");
    both(&format!("binary://{}", path.display()))
}

faults! { "hangs";
    fn create_without_a_reader(d) {
        create_hangs(d, both(&d.fifo("out")));
    }

    fn create_with_an_unready_logger(d) {
        create_hangs(d, silent_logger(d));
    }

    fn exec_without_a_reader(d) {
        exec_hangs(d, &both(&d.fifo("out")));
    }

    fn exec_with_an_unready_logger(d) {
        exec_hangs(d, &silent_logger(d));
    }

    fn log_file_is_a_fifo_that_nobody_reads(d) {
        let fifo = d.fifo("log");
        let c = d.shell("c", "yes").stdio(both(&format!("file://{fifo}"))).shim();
        // It may succeed, as the file is opened in the background, or for reading and writing.
        let create: Pending<task::CreateTaskResponse> =
            c.connection.send(d.api.service(), "Create", &c.create_request(), DEADLINE);
        if create.wait().is_ok() {
            let _ = c.start();
        }
        assert_eq!(remove(&c), 0, "the server's end");
        assert_events(d, "c");
    }

    fn log_file_on_a_dead_file_system(d) {
        let (silent, path) = silent(d);
        let c = d.shell("c", "yes").stdio(both(&format!("file://{path}"))).shim();
        let create: Pending<task::CreateTaskResponse> =
            c.connection.send(d.api.service(), "Create", &c.create_request(), DEADLINE);
        assert!(create.wait().is_err(), "Create was done");
        drop(silent);
        assert_eq!(remove(&c), 0, "the server's end");
        assert_events(d, "c");
    }

    fn mount_of_a_dead_file_system(d) {
        let (silent, source) = silent(d);
        let options = vec!["bind".into()];
        mount_hangs(d, Mount { type_: "bind".into(), source, options, ..Default::default() }, silent);
    }

    fn mount_helper(d) {
        let dir = d.path("helpers");
        fs::create_dir(&dir).expect("make a directory");
        write_program(&dir.join("mount.fuse3"), "exec /bin/sleep 1000");
        let path = std::env::var("PATH").expect("PATH");
        d.set_env("PATH", &format!("{}:{path}", dir.display()));
        let (type_, source) = ("fuse3.slow".into(), "none".into());
        mount_hangs(d, Mount { type_, source, ..Default::default() }, ());
    }

    fn logger_stops_reading(d) {
        let path = d.path("stopped");
        write_program(&path, "exec 5>&-\nexec /bin/sleep 1000");
        let c = d.shell("c", "yes").stdio(both(&format!("binary://{}", path.display()))).run();
        c.end();
        assert_eq!(remove(&c), 0, "the server's end");
        assert_events(d, "c");
    }
}
