//! docs/upgrade.md: from containerd's own shim to this one and back, in each form, under pods that
//! run; and what becomes of pods whose shim was removed. The commands are those of the document.

use std::fs;
use std::path::Path;

use crate::documents::{CONTAINERDS, OURS, block, restart, run_pod};
use crate::markdown;
use crate::messages::{Empty, ListPodSandboxResponse, NamespaceOption, PodSandboxState};
use crate::pods::{Container, Cri, Pod, security};
use crate::{left, machine, world};

const DOCUMENT: &str = "docs/upgrade.md";
const CONFIG: &str = "/run/containerd/config.toml";

/// Handlers of containerd's configuration, and the handler of the pods.
struct Setting {
    handlers: String,
    handler: &'static str,
}

/// Runs `case` in a world with the setting's handlers, which is a machine as the document has it.
fn enter(version: &'static str, setting: &Setting, test: &str, case: impl FnOnce(&Cri)) {
    let file = test.replace("::", "-");
    let file = format!("{}/{file}.toml", env!("CARGO_TARGET_TMPDIR"));
    fs::write(&file, &setting.handlers).expect("write the handlers to a file");
    world::enter_with(version, &[("CRI", &file)], test, || {
        machine::prepare();
        let cri = Cri::new(version, setting.handler);
        case(&cri);
        // Pods of all handlers.
        Cri::new(version, "").remove_pods();
        left::assert_nothing_left();
    });
}

/// Runs the block of the document that begins so, and waits until CRI answers again.
fn run_block(cri: &Cri, start: &str) {
    machine::run(&markdown::block(DOCUMENT, start).text);
    until_cri_answers(cri);
}

fn until_cri_answers(cri: &Cri) {
    world::until("CRI to answer", || {
        cri.call::<ListPodSandboxResponse>("ListPodSandbox", &Empty {})
            .is_ok()
    });
}

/// A pod that ran before a change: all of it works, and what is added is in the same server.
fn still_works((pod, container): &(Pod, Container)) {
    let servers = world::shims();
    assert_eq!(container.exec("echo fine"), "fine\n");
    let added = pod.run("echo added; exit 3");
    assert_eq!(added.wait().0, 3);
    assert_eq!(added.log_lines(), ["stdout added"]);
    added.remove();
    assert_eq!(world::shims(), servers, "no server has come or gone");
}

/// `to_ours` makes this shim that of new pods, `to_theirs` containerd's; pods that run stay as they
/// are, both times.
fn switch_both_ways(cri: &Cri, to_ours: impl FnOnce(&Cri), to_theirs: impl FnOnce(&Cri)) {
    let theirs = run_pod(cri, "theirs", CONTAINERDS);
    to_ours(cri);
    still_works(&theirs);
    let ours = run_pod(cri, "ours", OURS);
    let second = run_pod(cri, "second", OURS);

    to_theirs(cri);
    still_works(&theirs);
    still_works(&ours);
    run_pod(cri, "theirs-again", CONTAINERDS);
    for (pod, container) in [theirs, ours, second] {
        container.stop(0);
        assert_eq!(container.wait().0, 137);
        pod.stop();
        pod.remove();
    }
}

/// The configuration's handlers are replaced, and containerd is restarted.
fn configure(cri: &Cri, from: &str, to: &str) {
    let text = fs::read_to_string(CONFIG).expect("read the configuration");
    assert!(text.contains(from), "{text}");
    fs::write(CONFIG, text.replace(from, to)).expect("write the configuration");
    machine::run("systemctl restart containerd");
    until_cri_answers(cri);
}

/// By the configuration: `from` runs pods with containerd's shim, `to` with this one.
fn by_configuration(version: &'static str, from: &Setting, to: &str, test: &str) {
    enter(version, from, test, |cri| {
        let from = &from.handlers;
        switch_both_ways(
            cri,
            |cri| configure(cri, from, to),
            |cri| configure(cri, to, from),
        );
    });
}

/// The default handler gets another runtime type.
fn by_type(version: &'static str, heading: &str, test: &str) {
    let table = match version {
        "2" => "io.containerd.cri.v1.runtime",
        _ => "io.containerd.grpc.v1.cri",
    };
    let handlers = format!(
        "[plugins.\"{table}\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n"
    );
    let from = Setting {
        handlers,
        handler: "",
    };
    by_configuration(version, &from, &block(heading, "toml"), test);
}

/// A handler gets the path of this shim.
fn by_path(version: &'static str, heading: &str, test: &str) {
    let to = block(heading, "toml");
    let lines = to.lines().filter(|line| !line.contains("runtime_path"));
    let from = Setting {
        handlers: lines.map(|line| format!("{line}\n")).collect(),
        handler: "rs",
    };
    assert_ne!(from.handlers, to);
    by_configuration(version, &from, &to, test);
}

fn default_handler() -> Setting {
    Setting {
        handlers: String::new(),
        handler: "",
    }
}

fn by_link(version: &'static str, test: &str) {
    enter(version, &default_handler(), test, |cri| {
        let link =
            "ln -s /usr/local/bin/containerd-shim-rs-v2 /usr/local/bin/containerd-shim-runc-v2";
        let back =
            "ln -sfn /usr/bin/containerd-shim-runc-v2 /usr/local/bin/containerd-shim-runc-v2";
        switch_both_ways(
            cri,
            |cri| run_block(cri, link),
            |cri| {
                run_block(cri, back);
                // Not even the binary is needed then.
                fs::remove_file(machine::OURS).expect("remove the binary");
            },
        );
    });
}

/// Without a restart, containerd goes on with the shim that it has started before.
fn link_without_restart(cri: &Cri) {
    run_pod(cri, "before", CONTAINERDS);
    let text = markdown::block(DOCUMENT, "ln -s /usr/local").text;
    let (link, restart) = text.split_once('\n').expect("two commands");
    assert_eq!(restart, "systemctl restart containerd\n");
    machine::run(link);
    run_pod(cri, "remembered", CONTAINERDS);
}

/// What containerd starts this shim by is removed under a pod, and containerd is restarted. Then
/// the document's remedy.
fn dropped(cri: &Cri, file: &str) {
    let (pod, container) = run_pod(cri, "dropped", OURS);
    let process = format!("/proc/{}", container.pid());
    let server = world::shims()[0];
    fs::rename(file, "/usr/local/bin/removed").expect("remove it");
    // So far nothing has happened to the pod.
    assert_eq!(container.exec("echo fine"), "fine\n");
    restart(cri);
    let log = fs::read_to_string("/run/containerd/daemon.log").expect("containerd's log");
    assert!(log.contains("invalid custom binary path"), "{log}");
    assert_eq!(pod.status().state(), PodSandboxState::NotReady);
    assert_eq!(container.wait(), (255, "Unknown".to_owned()));
    assert!(Path::new(&process).exists(), "its process has ended");
    assert_eq!(world::shims(), [server]);

    // The remedy; ps says which server, and which containers.
    fs::rename("/usr/local/bin/removed", file).expect("install it again");
    let commands = markdown::block(DOCUMENT, "containerd-shim-rs-v2 ps").text;
    let [ps, inspect, delete, kill] = commands.lines().collect::<Vec<_>>()[..] else {
        panic!("four commands: {commands}");
    };
    let listed = machine::run(ps);
    let row = listed.lines().find(|row| row.contains(&pod.id));
    let row = row.and_then(|row| row.split_whitespace().next());
    assert_eq!(row, Some(server.to_string().as_str()), "{listed}");
    let inspected = machine::run(&inspect.replace("POD", &pod.id));
    for id in [&container.id, &pod.id] {
        assert!(inspected.contains(id), "{inspected}");
        machine::run(&delete.replace("ID", id));
    }
    assert!(!Path::new(&process).exists());
    machine::run(&kill.replace("PID", &server.to_string()));
}

/// The handler's table is removed under a pod, and containerd is restarted.
fn handler_removed(cri: &Cri) {
    let (pod, container) = run_pod(cri, "ours", OURS);
    let servers = world::shims();
    let text = fs::read_to_string(CONFIG).expect("read the configuration");
    let table = text.lines().find(|line| line.ends_with(".runtimes.rs]"));
    let table = format!(
        "{}\n  runtime_type = \"io.containerd.rs.v2\"\n",
        table.expect("it")
    );
    configure(cri, &table, "");
    let wanted = "no runtime for \"rs\" is configured";
    let refused = cri.try_run_pod("refused", security(NamespaceOption::default()));
    let error = refused.err().expect("a pod of a handler that is gone");
    assert!(error.message.contains(wanted), "{error:?}");
    let added = pod.try_create("exec sleep 100000", |_| {});
    let error = added.err().expect("a container of a handler that is gone");
    assert!(error.message.contains(wanted), "{error:?}");
    // containerd 2 looks the handler up for each exec.
    match container.try_exec("echo fine", 0) {
        Ok(done) => assert!(cri.version != "2" && done.stdout == b"fine\n", "{done:?}"),
        Err(error) => assert!(
            cri.version == "2" && error.message.contains(wanted),
            "{error:?}"
        ),
    }
    container.stop(0);
    assert_eq!(container.wait().0, 137);
    assert_eq!(world::shims(), servers);
    pod.stop();
    pod.remove();
}

macro_rules! tests {
    ($($test:ident: $call:ident($version:literal $(, $argument:literal)*);)*) => {$(
        #[test]
        fn $test() {
            let name = concat!(module_path!(), "::", stringify!($test));
            $call($version, $($argument,)* name);
        }
    )*};
}

fn without_restart(version: &'static str, test: &str) {
    enter(version, &default_handler(), test, link_without_restart);
}

fn link_removed(version: &'static str, test: &str) {
    enter(version, &default_handler(), test, |cri| {
        run_block(cri, "ln -s /usr/local");
        dropped(cri, "/usr/local/bin/containerd-shim-runc-v2");
    });
}

fn binary_removed(version: &'static str, heading: &str, test: &str) {
    let setting = Setting {
        handlers: block(heading, "toml"),
        handler: "rs",
    };
    enter(version, &setting, test, |cri| dropped(cri, machine::OURS));
}

fn handler(version: &'static str, heading: &str, test: &str) {
    let setting = Setting {
        handlers: block(heading, "toml"),
        handler: "rs",
    };
    enter(version, &setting, test, handler_removed);
}

tests! {
    type_in_containerd_1_6: by_type("1.6", "### Default of containerd 1.6 and 1.7");
    type_in_containerd_1_7: by_type("1.7", "### Default of containerd 1.6 and 1.7");
    type_in_containerd_2: by_type("2", "### Default of containerd 2");
    path_in_containerd_1_7: by_path("1.7", "### Path for containerd 1.7");
    path_in_containerd_2: by_path("2", "### Path for containerd 2");
    link_in_containerd_1_6: by_link("1.6");
    link_in_containerd_1_7: by_link("1.7");
    link_in_containerd_2: by_link("2");
    link_without_restart_in_containerd_1_6: without_restart("1.6");
    link_without_restart_in_containerd_1_7: without_restart("1.7");
    link_without_restart_in_containerd_2: without_restart("2");
    handler_removed_in_containerd_1_6: handler("1.6", "### containerd 1.6 and 1.7");
    handler_removed_in_containerd_1_7: handler("1.7", "### containerd 1.6 and 1.7");
    handler_removed_in_containerd_2: handler("2", "### containerd 2\n");
    link_removed_in_containerd_1_6: link_removed("1.6");
    link_removed_in_containerd_1_7: link_removed("1.7");
    link_removed_in_containerd_2: link_removed("2");
    binary_removed_in_containerd_1_6: binary_removed("1.6", "### containerd 1.6 and 1.7");
    binary_removed_in_containerd_1_7: binary_removed("1.7", "### containerd 1.6 and 1.7");
    binary_removed_in_containerd_2: binary_removed("2", "### containerd 2\n");
    path_removed_in_containerd_1_7: binary_removed("1.7", "### Path for containerd 1.7");
    path_removed_in_containerd_2: binary_removed("2", "### Path for containerd 2");
}
