//! `deploy/`: the installer as a DaemonSet runs it, on the node that a world is. The containers are
//! those of the manifests, and `node` in them enters the world as it enters a node.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::api::{self, Api};
use crate::documents::{CONTAINERDS, OURS, command, run_pod};
use crate::messages::*;
use crate::pods::{Container, Cri, Pod, security};
use crate::{left, markdown, world};

const CONFIG: &str = "/run/containerd/config.toml";
const LABEL: &str = "containerd-shim-rs-v2/handler";
const BINARY: &str = "/usr/local/bin/containerd-shim-rs-v2";
const IMAGE: &str = "localhost/containerd-shim-rs-v2-installer:latest";

/// In place of systemd: asks this test to restart containerd, and waits for the answer. (What
/// the installer starts itself ends with its container.)
const RESTART: &str = "/run/containerd/restart";
const RESTART_SCRIPT: &str = "echo >/run/containerd/restart.wanted
    while [ -e /run/containerd/restart.wanted ]; do sleep 0.1; done
    [ ! -e /run/containerd/restart.failed ]";

/// Runs `case` in a world with these handlers, where the installer's image is there.
fn enter(version: &'static str, handlers: &str, test: &str, case: fn(&Node)) {
    let name = test.replace("::", "-");
    let file = |end: &str| format!("{}/{name}.{end}", env!("CARGO_TARGET_TMPDIR"));
    let (handlers_file, image) = (file("toml"), file("tar"));
    fs::write(&handlers_file, handlers).expect("write the handlers to a file");
    world::enter_with(version, &[("CRI", &handlers_file)], test, || {
        let top = env!("CARGO_MANIFEST_DIR");
        let shim = "opt/containerd-shim-rs-v2=/run/containerd/shims/containerd-shim-rs-v2";
        let script = format!("bin/node={top}/deploy/node");
        let make = format!("{top}/hack/image");
        command(&[&make, &image, IMAGE, "[\"node\"]", &script, shim]);
        command(&["ctr", "--namespace", "k8s.io", "image", "import", &image]);
        fs::remove_file(&image).expect("remove the image");
        // Of the binary there is only what the installer brings.
        command(&["mount", "-t", "tmpfs", "world", "/usr/local/bin"]);
        let shims = "/run/containerd/shims/containerd-shim-rs-v2";
        fs::rename(shims, "/run/containerd/shim-under-test").expect("hide the shim");
        fs::write(RESTART, RESTART_SCRIPT).expect("write the script");

        let node = Node::new(version);
        std::thread::scope(|scope| {
            scope.spawn(|| node.restart_containerd_when_asked());
            let _end = EndOfCase(&node.is_over);
            case(&node);
            node.default.remove_pods();
        });
        left::assert_nothing_left();
    });
}

/// What the installer works on.
struct Node {
    /// Pods of the default handler.
    default: Cri,
    /// Pods of the handler that the installer adds.
    rs: Cri,
    api: Api,
    restarts: AtomicUsize,
    is_over: AtomicBool,
}

/// Ends the thread that restarts containerd, however a case ends.
struct EndOfCase<'a>(&'a AtomicBool);

impl Drop for EndOfCase<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Node {
    fn new(version: &'static str) -> Self {
        Self {
            default: Cri::new(version, ""),
            rs: Cri::new(version, "rs"),
            api: Api::start(),
            restarts: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        }
    }

    fn restart_containerd_when_asked(&self) {
        let daemon = concat!(env!("CARGO_MANIFEST_DIR"), "/hack/daemon");
        while !self.is_over.load(Ordering::Relaxed) {
            if Path::new("/run/containerd/restart.wanted").exists() {
                // There may be none: it did not start with what it was given last.
                let _ = Command::new(daemon).arg("stop").status();
                let start = Command::new(daemon).arg("start").status();
                let _ = fs::remove_file("/run/containerd/restart.failed");
                if !start.is_ok_and(|status| status.success()) {
                    fs::write("/run/containerd/restart.failed", "").expect("say so");
                }
                self.restarts.fetch_add(1, Ordering::Relaxed);
                fs::remove_file("/run/containerd/restart.wanted").expect("answer");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn restarts(&self) -> usize {
        self.restarts.load(Ordering::Relaxed)
    }

    /// Runs the pod of the DaemonSet that a command of the document applies.
    fn apply(&self, command: &str) -> (Pod<'_>, Value) {
        let set = daemon_set("apply", command);
        let spec = set["spec"]["template"]["spec"].clone();
        let is = |name: &str| match spec[name].as_bool() {
            Some(true) => NamespaceMode::Node as i32,
            _ => NamespaceMode::Pod as i32,
        };
        let namespaces = NamespaceOption {
            network: is("hostNetwork"),
            pid: is("hostPID"),
            ..NamespaceOption::default()
        };
        let container = spec["containers"][0].clone();
        let mut security = security(namespaces);
        security.privileged = is_privileged(&container);
        let name = set["metadata"]["name"].as_str().expect("a name");
        (self.default.run_pod_with(name, security), container)
    }
}

/// The commands of the document that begin so.
fn commands(start: &str) -> Vec<String> {
    let block = markdown::block("docs/kubernetes.md", start);
    block.text.lines().map(str::to_owned).collect()
}

/// The DaemonSet in what `kubectl VERB -k DIRECTORY` sends to the cluster.
fn daemon_set(verb: &str, command: &str) -> Value {
    let words: Vec<_> = command.split_whitespace().take(4).collect();
    let ["kubectl", found, "-k", directory] = words[..] else {
        panic!("not kubectl: {command}");
    };
    assert_eq!(found, verb, "{command}");
    let rendered = Command::new("kubectl")
        .args(["kustomize", directory])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("run kubectl");
    assert!(rendered.status.success(), "{rendered:?}");
    let manifests = from_yaml(&rendered.stdout);
    let is_set = |manifest: &&Value| manifest["kind"] == "DaemonSet";
    let sets: Vec<_> = manifests.iter().filter(is_set).collect();
    let [set] = sets[..] else {
        panic!("one DaemonSet: {manifests:?}");
    };
    assert_eq!(set["metadata"]["namespace"], "kube-system");
    set.clone()
}

/// All documents of a text.
pub fn from_yaml(text: &[u8]) -> Vec<Value> {
    let convert = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))";
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", convert])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run python3");
    let mut stdin = python.stdin.take().expect("a pipe");
    stdin.write_all(text).expect("write to python3");
    drop(stdin);
    let output = python.wait_with_output().expect("wait for python3");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The manifest as JSON.
fn manifest_of(file: &str) -> Value {
    let path = format!("{}/deploy/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    from_yaml(&text).remove(0)
}

fn is_privileged(container: &Value) -> bool {
    container["securityContext"]["privileged"].as_bool() == Some(true)
}

/// Starts the container of a manifest, as the kubelet does each time it has ended.
fn start<'a>(node: &Node, pod: &Pod<'a>, container: &Value) -> Container<'a> {
    let words = container["command"].as_array().expect("a command");
    let words = words.iter().map(|word| word.as_str().expect("a word"));
    // What a world has elsewhere than a node.
    let path = std::env::var("PATH").expect("a PATH");
    let restart = format!("sh {RESTART}");
    let envs = [("CONFIG", CONFIG), ("RESTART", &restart), ("PATH", &path)];
    // What the kubelet adds.
    let source = &container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"];
    assert_eq!(source, "spec.nodeName");
    let name = container["env"][0]["name"].as_str().expect("a name");
    let port = node.api.port.to_string();
    let envs = envs.into_iter().chain([
        (name, api::NODE),
        ("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
        ("KUBERNETES_SERVICE_PORT", &port),
    ]);
    pod.run_with("", |config| {
        config.command = words.map(str::to_owned).collect();
        let image = container["image"].as_str().expect("an image").to_owned();
        config.image = Some(ImageSpec { image });
        config.envs = envs
            .map(|(key, value)| KeyValue {
                key: key.to_owned(),
                value: value.to_owned(),
            })
            .collect();
        config.mounts = vec![Mount {
            container_path: "/var/run/secrets/kubernetes.io/serviceaccount".to_owned(),
            host_path: api::ACCOUNT.to_owned(),
        }];
        let linux = config
            .linux
            .as_mut()
            .and_then(|linux| linux.security_context.as_mut());
        linux.expect("it is set").privileged = is_privileged(container);
    })
}

fn configuration() -> String {
    fs::read_to_string(CONFIG).expect("read the configuration")
}

fn handler_is_known(node: &Node) -> bool {
    let security = security(NamespaceOption::default());
    match node.rs.try_run_pod("is-it-known", security) {
        Ok(pod) => {
            pod.stop();
            pod.remove();
            true
        }
        Err(error) => {
            assert!(error.message.contains("no runtime for \"rs\""), "{error:?}");
            false
        }
    }
}

/// Install, a pod, an attempt to uninstall under it, uninstall: all is as before.
fn install_and_uninstall(node: &Node) {
    let before = configuration();
    assert!(!handler_is_known(node));
    let (pod, container) = node.apply(&commands("kubectl apply -k deploy")[0]);
    let installer = start(node, &pod, &container);
    installer.until_log("stdout node: installed handler rs");
    assert_eq!(node.restarts(), 1);
    assert_eq!(node.api.labels(), json!({LABEL: "rs"}));
    let ours = run_pod(&node.rs, "ours", OURS);
    run_pod(&node.default, "default", CONTAINERDS);

    // It runs again after a reboot, say: there is nothing to do.
    installer.stop(60);
    assert_eq!(installer.wait().0, 0);
    let again = start(node, &pod, &container);
    again.until_log("stdout node: installed handler rs");
    assert_eq!(node.restarts(), 1);

    let undo = commands("kubectl delete -k deploy");
    let [delete, apply, delete_again] = &undo[..] else {
        panic!("three commands: {undo:?}");
    };
    assert_eq!(
        daemon_set("delete", delete),
        daemon_set("apply", &commands("kubectl apply -k deploy")[0])
    );
    again.stop(60);
    pod.stop();
    pod.remove();

    let (pod, container) = node.apply(apply);
    let refused = start(node, &pod, &container);
    assert_eq!(refused.wait().0, 1);
    let log = refused.log_lines().join("\n");
    assert!(log.contains("delete their pods first"), "{log}");
    assert_eq!(node.api.labels(), json!({}), "no more pods may come");
    assert_eq!(ours.1.exec("echo fine"), "fine\n");
    ours.0.stop();
    ours.0.remove();
    // Those of the default pod and of the uninstaller stay.
    world::until("our server to end", || world::shims().len() == 2);
    let uninstaller = start(node, &pod, &container);
    uninstaller.until_log("stdout node: removed");
    assert_eq!(node.restarts(), 2);
    assert_eq!(configuration(), before);
    assert!(!Path::new(BINARY).exists());
    assert!(!handler_is_known(node));
    assert_eq!(
        daemon_set("delete", delete_again),
        daemon_set("apply", apply)
    );
    uninstaller.stop(60);
    assert_eq!(uninstaller.wait().0, 0);
}

/// A node that may not be labelled, or cannot, gets the handler all the same.
fn label_is_refused(node: &Node) {
    api::give_token("another");
    let (pod, container) = node.apply(&commands("kubectl apply -k deploy")[0]);
    let installer = start(node, &pod, &container);
    installer.until_log("stdout node: installed handler rs");
    let log = installer.log_lines().join("\n");
    assert!(
        log.contains("stays as it is: curl: (22)") && log.contains("403"),
        "{log}"
    );
    assert_eq!(node.api.labels(), json!({}));
    assert!(handler_is_known(node));
    installer.stop(60);

    // Another's certificate: the token must not be told to whoever answers.
    api::give_token("installer");
    api::give_certificate_of_another();
    let installer = start(node, &pod, &container);
    installer.until_log("stdout node: installed handler rs");
    let log = installer.log_lines().join("\n");
    assert!(log.contains("stays as it is: curl: (60)"), "{log}");
    assert_eq!(node.api.labels(), json!({}));
    installer.stop(60);
}

/// What the installer cannot see in the configuration makes a table of its own an error: the
/// old configuration is put back.
fn refused_configuration(node: &Node) {
    let before = configuration();
    let (pod, container) = node.apply(&commands("kubectl apply -k deploy")[0]);
    let installer = start(node, &pod, &container);
    // By its log: there is no containerd to ask for a while.
    world::until("the old configuration to be back", || {
        let log = installer.log_lines().join("\n");
        log.contains("it was put back")
    });
    assert_eq!(installer.wait().0, 1);
    assert_eq!(configuration(), before);
    assert_eq!(node.restarts(), 2);
    run_pod(&node.default, "default", CONTAINERDS);
}

/// Another's handler with the same name is left alone.
fn handler_of_others(node: &Node) {
    let before = configuration();
    let (pod, container) = node.apply(&commands("kubectl apply -k deploy")[0]);
    let installer = start(node, &pod, &container);
    assert_eq!(installer.wait().0, 1);
    let log = installer.log_lines().join("\n");
    assert!(log.contains("not the installer's"), "{log}");
    assert_eq!((configuration(), node.restarts()), (before, 0));
}

macro_rules! cases {
    ($($test:ident: $version:literal, $handlers:literal, $case:ident;)*) => {$(
        #[test]
        fn $test() {
            let name = concat!(module_path!(), "::", stringify!($test));
            enter($version, $handlers, name, $case);
        }
    )*};
}

cases! {
    on_containerd_1_6: "1.6", "", install_and_uninstall;
    on_containerd_1_7: "1.7", "", install_and_uninstall;
    on_containerd_2: "2", "", install_and_uninstall;
    beside_a_table_of_runc: "1.7",
        "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n\
         runtime_type = \"io.containerd.runc.v2\"\n", install_and_uninstall;
    where_the_label_is_refused: "2", "", label_is_refused;
    beside_an_inline_table: "1.7",
        "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n\
         runtimes = { runc = { runtime_type = \"io.containerd.runc.v2\" } }\n",
        refused_configuration;
    beside_a_handler_of_others: "2",
        "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.rs]\n\
         runtime_type = \"io.containerd.runc.v2\"\n", handler_of_others;
}

#[test]
fn manifests_fit_together() {
    let class = manifest_of("runtimeclass.yaml");
    let script = format!("{}/deploy/node", env!("CARGO_MANIFEST_DIR"));
    let script = fs::read_to_string(&script).expect("read the script");
    let handler = class["handler"].as_str().expect("a handler");
    assert!(script.contains(&format!("HANDLER=${{HANDLER:-{handler}}}")));
    let block = markdown::block("docs/kubernetes.md", "scheduling:");
    let scheduling = from_yaml(block.text.as_bytes()).remove(0);
    assert_eq!(
        scheduling["scheduling"]["nodeSelector"],
        json!({LABEL: handler})
    );
    let rights = manifest_of("rbac/rbac.yaml");
    let role = &rights["items"][1];
    assert_eq!(role["rules"][0]["verbs"], json!(["patch"]));
    let binding = &rights["items"][2];
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    let account = &rights["items"][0]["metadata"];
    assert_eq!(binding["subjects"][0]["name"], account["name"]);
    assert_eq!(binding["subjects"][0]["namespace"], account["namespace"]);
    for place in ["", "uninstall/"] {
        let set = manifest_of(&format!("{place}daemonset.yaml"));
        let labels = &set["spec"]["template"]["metadata"]["labels"];
        assert_eq!(*labels, set["spec"]["selector"]["matchLabels"]);
        let account = &set["spec"]["template"]["spec"]["serviceAccountName"];
        assert_eq!(*account, rights["items"][0]["metadata"]["name"]);
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], IMAGE);
        let kustomization = manifest_of(&format!("{place}kustomization.yaml"));
        for resource in kustomization["resources"].as_array().expect("a list") {
            let mut file = format!("{place}{}", resource.as_str().expect("a file"));
            if !file.ends_with(".yaml") {
                file += "/kustomization.yaml";
            }
            assert!(manifest_of(&file)["kind"].is_string(), "{file}");
        }
        let image = kustomization["images"][0]["name"].as_str();
        assert_eq!(image, IMAGE.strip_suffix(":latest"));
    }
}
