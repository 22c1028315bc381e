//! The documents are true: containerd is started with each block as it is printed, and pods run
//! with the shim that the text promises.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::messages::{ContainerState, Empty, ListPodSandboxResponse};
use crate::pods::{Container, Cri, Pod};
use crate::{deploy, left, world};

const KUBERNETES: &str = "docs/kubernetes.md";
const README: &str = "README.md";
const SANDBOX: &str = "docs/sandbox.md";
const STAY: &str = "exec sleep 100000";

/// The first block of this language after the line that begins so.
pub fn block(line: &str, language: &str) -> String {
    let document = if line.starts_with("**") {
        README
    } else if line == "## Switch it on" {
        SANDBOX
    } else {
        KUBERNETES
    };
    let path = format!("{}/{document}", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (_, rest) = text
        .split_once(&format!("\n{line}"))
        .unwrap_or_else(|| panic!("{path} has no line {line:?}"));
    let (_, rest) = rest
        .split_once(&format!("```{language}\n"))
        .unwrap_or_else(|| panic!("{path} has no such block after {line:?}"));
    rest.split_once("```")
        .expect("the block's end")
        .0
        .to_owned()
}

/// Runs `case` in a world whose handlers are those of the block.
fn with_block(
    version: &'static str,
    line: &str,
    variables: &[(&str, &str)],
    test: &str,
    case: fn(&Cri),
) {
    let file = test.replace("::", "-");
    let file = format!("{}/{file}.toml", env!("CARGO_TARGET_TMPDIR"));
    fs::write(&file, block(line, "toml")).expect("write the block to a file");
    let variables = [variables, &[("CRI", &file)]].concat();
    world::enter_with(version, &variables, test, || {
        install();
        case(&Cri::new(version, "rs"));
        // Any handler's client can do this.
        Cri::new(version, "").remove_pods();
        left::assert_nothing_left();
    });
}

/// As `make install` does, in this world only.
fn install() {
    command(&["mount", "-t", "tmpfs", "world", "/usr/local/bin"]);
    let shim = "/run/containerd/shims/containerd-shim-rs-v2";
    command(&["cp", shim, "/usr/local/bin"]);
}

pub fn command(words: &[&str]) {
    let status = Command::new(words[0]).args(&words[1..]).status();
    assert!(status.is_ok_and(|status| status.success()), "{words:?}");
}

/// Whether a pod's server is a binary with this name, by the document's own command.
fn server_is(pod: &Pod, name: &str) -> bool {
    let script = block("## Which shim runs a pod", "sh");
    let output = Command::new("sh").args(["-c", &script]).output();
    let output = String::from_utf8(output.expect("run sh").stdout).expect("UTF-8");
    let server = output
        .lines()
        .find(|line| line.contains(&format!("-id {} ", pod.id)))
        .unwrap_or_else(|| panic!("no server of {} in {output:?}", pod.id));
    let binary = server.split(' ').next().expect("a path");
    binary.ends_with(&format!("/{name}"))
}

pub const OURS: &str = "containerd-shim-rs-v2";
pub const CONTAINERDS: &str = "containerd-shim-runc-v2";

/// Runs a pod whose server must have this name.
pub fn run_pod<'a>(cri: &'a Cri, name: &str, server: &str) -> (Pod<'a>, Container<'a>) {
    let pod = cri.run_pod(name);
    let container = pod.run(STAY);
    assert_eq!(container.exec("echo fine"), "fine\n");
    assert!(server_is(&pod, server), "{name}: {server}");
    (pod, container)
}

/// A handler beside the default one.
fn added(cri: &Cri) {
    run_pod(cri, "ours", OURS);
    run_pod(&Cri::new(cri.version, ""), "default", CONTAINERDS);
}

/// A handler whose path is ignored.
fn ignored(cri: &Cri) {
    run_pod(cri, "theirs", CONTAINERDS);
}

/// A handler for pods without a pause container.
fn without_pause(cri: &Cri) {
    let cri = Cri::new(cri.version, "rs-sandbox");
    let pods = [cri.run_pod("one"), cri.run_pod("two")];
    for pod in &pods {
        assert_eq!(
            pod.run(STAY)
                .exec("hostname; cat /etc/hostname")
                .lines()
                .count(),
            2
        );
        assert!(server_is(pod, OURS));
    }
    let list = ["--namespace", "k8s.io", "container", "ls", "--quiet"];
    let list = Command::new("ctr").args(list).output().expect("run ctr");
    let list = String::from_utf8(list.stdout).expect("UTF-8");
    assert_eq!(list.lines().count(), 2, "no pause containers: {list}");
    restart(&cri);
    assert_eq!(pods[0].run("exit 3").wait().0, 3);
}

/// The default handler.
fn default(cri: &Cri) {
    run_pod(cri, "ours", OURS);
    run_pod(&Cri::new(cri.version, ""), "default", OURS);
}

/// Another OCI runtime. Debian 12's crun is too old for the newer containerds: there youki is
/// in its place.
fn with_crun(cri: &Cri) {
    let mut file = "status";
    if cri.version == "1.6" {
        // The block names a file; it is the world's own.
        command(&["mount", "-t", "tmpfs", "world", "/etc/containerd"]);
        let options = "BinaryName = \"/usr/bin/crun\"\n";
        fs::write("/etc/containerd/rs.toml", options).expect("write the options");
    } else {
        let youki = concat!(env!("CARGO_MANIFEST_DIR"), "/build/youki/bin/youki");
        command(&["mount", "--bind", youki, "/usr/bin/crun"]);
        file = "youki_config.json";
    }
    let (_, container) = run_pod(cri, "ours", OURS);
    // The files that hold a container's state tell whose they are; runc's is state.json only.
    let state = format!("/run/containerd/runc/k8s.io/{}/{file}", container.id);
    assert!(Path::new(&state).exists(), "no {state}");
}

/// The RuntimeClass's handler runs the pod's container.
fn runtime_class(cri: &Cri) {
    let manifests = deploy::from_yaml(block("## Let pods use it", "yaml").as_bytes());
    let [class, pod] = &manifests[..] else {
        panic!("a RuntimeClass and a Pod: {manifests:?}");
    };
    assert_eq!(pod["spec"]["runtimeClassName"], class["metadata"]["name"]);
    let handler = class["handler"].as_str().expect("a handler");
    let name = pod["metadata"]["name"].as_str().expect("a name");
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["image"], "busybox");
    let words = container["command"].as_array().expect("a command");
    let words = words
        .iter()
        .map(|word| word.as_str().expect("a word").to_owned());

    let cri = Cri::new(cri.version, handler);
    let running = cri.run_pod(name);
    let container = running.run_with("", |config| config.command = words.collect());
    assert_eq!(container.status().state(), ContainerState::Running);
    assert!(server_is(&running, OURS));
}

/// With the handler's table alone, containerd 1.x has no default handler: CRI does not start.
fn table_without_runc(version: &'static str, test: &str) {
    let all = block("### containerd 1.6 and 1.7", "toml");
    let (_, alone) = all.split_once("\n\n").expect("two tables");
    let file = test.replace("::", "-");
    let file = format!("{}/{file}.toml", env!("CARGO_TARGET_TMPDIR"));
    fs::write(&file, alone).expect("write the table to a file");
    world::enter_with(version, &[("CRI", &file)], test, || {
        world::until("containerd to say so", || {
            let log = fs::read_to_string("/run/containerd/daemon.log").expect("containerd's log");
            log.contains("no corresponding runtime configured")
        });
    });
}

#[test]
fn table_without_runc_in_containerd_1_6() {
    table_without_runc(
        "1.6",
        concat!(module_path!(), "::table_without_runc_in_containerd_1_6"),
    );
}

#[test]
fn table_without_runc_in_containerd_1_7() {
    table_without_runc(
        "1.7",
        concat!(module_path!(), "::table_without_runc_in_containerd_1_7"),
    );
}

/// A newer binary under running pods.
fn upgrade(cri: &Cri) {
    let old = run_pod(cri, "old", OURS);
    let old_server = world::shims()[0];
    let binary = "/run/containerd/shims/containerd-shim-rs-v2";
    // To write into it is refused.
    let copied = Command::new("cp").args(["/bin/true", binary]).output();
    let error = String::from_utf8(copied.expect("run cp").stderr).expect("UTF-8");
    assert!(error.contains("Text file busy"), "{error}");
    let new = format!("{binary}.new");
    command(&["cp", binary, &new]);
    fs::rename(&new, binary).expect("replace the binary");

    let exe = fs::read_link(format!("/proc/{old_server}/exe")).expect("its binary");
    assert_eq!(exe.to_str(), Some(format!("{binary} (deleted)").as_str()));
    run_pod(cri, "new", OURS);
    restart(cri);
    assert_eq!(old.1.exec("echo fine"), "fine\n");
    assert_eq!(old.0.run("exit 3").wait().0, 3);
    old.1.stop(0);
    assert_eq!(old.1.wait().0, 137);
    assert!(
        world::shims().contains(&old_server),
        "the pod has its server"
    );
}

pub fn restart(cri: &Cri) {
    world::stop_containerd();
    world::start_containerd();
    world::until("CRI to answer", || {
        cri.call::<ListPodSandboxResponse>("ListPodSandbox", &Empty {})
            .is_ok()
    });
}

/// Tests: a name, a containerd, the line before a block, a case, and variables.
macro_rules! blocks {
    ($($test:ident: $version:literal, $line:literal, $case:ident $(, $name:literal = $value:literal)*;)*) => {$(
        #[test]
        fn $test() {
            let name = concat!(module_path!(), "::", stringify!($test));
            with_block($version, $line, &[$(($name, $value))*], name, $case);
        }
    )*};
}

blocks! {
    handler_of_the_readme: "2", "**Kubernetes (CRI).**", added;
    handler_in_containerd_1_6: "1.6", "### containerd 1.6 and 1.7", added;
    handler_in_containerd_1_7: "1.7", "### containerd 1.6 and 1.7", added;
    handler_in_containerd_2: "2", "### containerd 2\n", added;
    handler_in_containerd_2_with_version_2:
        "2", "### containerd 1.6 and 1.7", added, "CONFIG_VERSION" = "2";
    default_in_containerd_1_6: "1.6", "### Default of containerd 1.6 and 1.7", default;
    default_in_containerd_1_7: "1.7", "### Default of containerd 1.6 and 1.7", default;
    default_in_containerd_2: "2", "### Default of containerd 2", default;
    path_is_ignored_by_containerd_1_6: "1.6", "### Path for containerd 1.7", ignored;
    path_in_containerd_1_7: "1.7", "### Path for containerd 1.7", added;
    path_in_containerd_2: "2", "### Path for containerd 2", added;
    options_in_containerd_1_6: "1.6", "### Options in containerd 1.6", with_crun;
    options_in_containerd_1_7: "1.7", "### Options in containerd 1.7", with_crun;
    options_in_containerd_2: "2", "### Options in containerd 2", with_crun;
    sandbox_in_containerd_2: "2", "## Switch it on", without_pause;
    pod_with_a_runtime_class: "2", "### containerd 2\n", runtime_class;
    upgrade_with_containerd_1_7: "1.7", "### containerd 1.6 and 1.7", upgrade;
    upgrade_with_containerd_2: "2", "### containerd 2\n", upgrade;
}
