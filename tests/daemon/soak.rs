//! Soak: containers and execs come and go in one server, and containerd is killed and started again
//! in between. In the end the server has what it had in the beginning.

use std::process::{Command, Stdio};

use crate::ctr::{Ctr, Running};
use crate::footprint::{IDLE, assert_kept};
use crate::world;

/// The group of containers that share the server.
const GROUP: &str = "io.containerd.runc.v2.group=soak";
/// Rounds before the first look: a first use allocates for good.
const WARM_UP: usize = 2;
/// Containers that come and go in each round; the last one ends while containerd is away.
const CONTAINERS: usize = 3;
/// Execs for each container, at the same time.
const EXECS: usize = 4;

/// Minutes' worth is for `make soak`.
pub fn rounds_40(ctr: &Ctr) {
    soak(ctr, 40);
}

pub fn rounds_3(ctr: &Ctr) {
    soak(ctr, 3);
}

fn soak(ctr: &Ctr, rounds: usize) {
    run(ctr, "keep");
    let shim = server();
    (0..WARM_UP).for_each(|number| round(ctr, number));
    let took = assert_kept(shim, IDLE, || {
        (WARM_UP..WARM_UP + rounds).for_each(|number| round(ctr, number));
    });
    println!(
        "soak with containerd: {} containers, {} execs, {rounds} restarts of containerd in {} s",
        rounds * CONTAINERS,
        rounds * CONTAINERS * EXECS,
        took.as_secs()
    );
    assert_eq!(server(), shim, "the server");
    ctr.remove("keep");
}

/// Containers run in the server at the same time, with execs; containerd is restarted; all go.
fn round(ctr: &Ctr, number: usize) {
    let ids: Vec<String> = (0..CONTAINERS)
        .map(|at| format!("box-{number}-{at}"))
        .collect();
    ids.iter().for_each(|id| run(ctr, id));
    for id in &ids {
        let execs = (0..EXECS).map(|at| {
            let (exec, code) = (format!("e{at}"), at as i32);
            let script = format!("echo {exec}; exit {code}");
            let words = ["task", "exec", "--exec-id", &exec, id, "sh", "-c", &script];
            (code, Running::start(ctr.command(words)))
        });
        for (code, exec) in execs.collect::<Vec<_>>() {
            exec.wait().expect(code, &format!("e{code}\n"));
        }
    }
    let (last, others) = ids.split_last().expect("a container");
    let init = ctr.task(last).expect("a task").0;
    world::stop_containerd();
    kill(init);
    world::start_containerd();
    for id in others {
        ctr.remove(id);
    }
    // containerd may have found the task without processes when it started, and deleted it.
    world::until("the end of the task", || {
        let task = ctr.task(last);
        task.is_none_or(|(_, status)| status == "STOPPED")
    });
    ctr.call(&format!("task delete {last}"));
    ctr.ok(&format!("container delete {last}"));
}

/// Starts a container that stays, in the one server.
fn run(ctr: &Ctr, id: &str) {
    let done = ctr.run(&["-d", "--annotation", GROUP], id, &["sleep", "1000"]);
    assert!(done.status.success(), "run -d {id}: {done:?}");
}

/// The pid of the one server.
fn server() -> i32 {
    let [shim] = world::shims()[..] else {
        panic!("one server wanted: {:?}", world::processes());
    };
    shim
}

/// Kills a process, and waits until it is gone.
fn kill(pid: i32) {
    world::until("the end of an init", || {
        let mut command = Command::new("kill");
        command.args(["-KILL", &pid.to_string()]);
        let status = command.stderr(Stdio::null()).status();
        !status.expect("run kill").success()
    });
}
