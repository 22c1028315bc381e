//! docs/upgrade.md: containers live on while containerd is replaced by another version, in both
//! directions; and while this shim's binary is replaced.

use std::fs;
use std::process::Command;

use crate::ctr::{Ctr, Done, Naming, Running};
use crate::world;

const CONFIG: &str = "/run/containerd/config.toml";
const STAY: &str = "exec sleep 1000";

/// The directory with the programs of a containerd.
fn programs(version: &str) -> String {
    match version {
        "1.6" => "/usr/bin".to_owned(),
        _ => format!(
            "{}/build/containerd-{version}/usr/bin",
            env!("CARGO_MANIFEST_DIR")
        ),
    }
}

/// Ends this world's containerd, and starts another version in its place: with the same state,
/// and with a configuration that all of them read.
fn replace_containerd(version: &str) {
    let text = fs::read_to_string(CONFIG).expect("read the configuration");
    let text = text.replace("version = 3\n", "version = 2\n");
    fs::write(CONFIG, text).expect("write the configuration");
    world::stop_containerd();
    let path = std::env::var("PATH").expect("a PATH");
    let status = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/hack/daemon"))
        .arg("start")
        .env("PATH", format!("{}:{path}", programs(version)))
        .status();
    assert!(
        status.expect("run hack/daemon").success(),
        "start {version}"
    );
    let found = Ctr::new(Naming::Name).ok("version");
    let server = found.split("Server:").nth(1).expect("the server's version");
    let wanted = format!("Version:  {version}.");
    assert!(server.contains(&wanted), "{wanted:?}: {found}");
}

/// A container that was started under another version: all of it works.
fn still_works(ctr: &Ctr, id: &str) {
    assert_eq!(ctr.task(id).expect("its task").1, "RUNNING");
    ctr.exec(id, "try", "echo fine; exit 3").expect(3, "fine\n");
}

pub fn containerd_upgraded_and_rolled_back(ctr: &Ctr) {
    let mut started: Vec<String> = Vec::new();
    replace_containerd("1.6");
    for version in ["1.6", "1.7", "2", "1.7", "1.6"] {
        replace_containerd(version);
        for id in &started {
            still_works(ctr, id);
        }
        let id = format!("box-{}-{}", version.replace('.', "-"), started.len());
        ctr.detached(&id, STAY);
        started.push(id);
    }
    for id in &started {
        ctr.remove(id);
    }
}

/// The same with containerd's own shim of 2.x: 1.7 does not speak its version of the Task API.
pub fn rollback_loses_containers_of_containerds_own_shim(ctr: &Ctr) {
    let go = format!("{}/containerd-shim-runc-v2", programs("2"));
    let words = [
        "run",
        "-d",
        "--runtime",
        &go,
        crate::ctr::IMAGE,
        "theirs",
        "sleep",
        "1000",
    ];
    let done: Done = Running::start(ctr.command(words)).wait();
    assert!(done.status.success(), "{done:?}");
    let server = world::shims()[0];
    ctr.detached("ours", STAY);
    replace_containerd("1.7");
    still_works(ctr, "ours");
    assert_eq!(ctr.task("theirs"), None);
    let log = fs::read_to_string("/run/containerd/daemon.log").expect("containerd's log");
    assert!(log.contains("cleaning up dead shim"), "{log}");
    // The container was killed; its server stays.
    assert!(world::shims().contains(&server));
    let killed = Command::new("kill").arg(server.to_string()).status();
    assert!(killed.expect("run kill").success());
    ctr.remove("ours");
    ctr.ok("container delete theirs");
}

/// The binary is removed under a container, and containerd is restarted: it has no task any more.
pub fn binary_removed(ctr: &Ctr) {
    ctr.detached("box", STAY);
    let (pid, _) = ctr.task("box").expect("a task");
    let server = world::shims()[0];
    fs::remove_file("/run/containerd/shims/containerd-shim-rs-v2").expect("remove the binary");
    ctr.exec("box", "try", "echo fine").expect(0, "fine\n");
    world::stop_containerd();
    world::start_containerd();
    assert_eq!(ctr.task("box"), None);
    assert!(fs::exists(format!("/proc/{pid}")).expect("look at /proc"));
    // As the document says, for this namespace.
    let root = format!("/run/containerd/runc/{}", world::namespace());
    let done = Command::new("runc")
        .args(["--root", &root, "delete", "--force", "box"])
        .status();
    assert!(done.expect("run runc").success());
    let killed = Command::new("kill").arg(server.to_string()).status();
    assert!(killed.expect("run kill").success());
    ctr.ok("container delete box");
}
