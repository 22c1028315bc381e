//! Containers of this shim on containerd's proxy plugins, as docs/proxy-plugins.md has it: its
//! blocks are run, and what its tables say is asserted. Each case has a world of its own
//! (`hack/daemon`); the plugins are those of `examples/`, and Debian's soci-snapshotter
//! (`hack/setup`).
#![allow(
    clippy::disallowed_methods,
    reason = "these tests run plugins, containerd and ctr"
)]

mod document;
#[allow(dead_code, reason = "a part of it is for the check of all documents")]
#[path = "../documents/markdown.rs"]
mod markdown;

// A part of them is used here.
#[allow(dead_code)]
#[path = "../daemon/ctr.rs"]
mod ctr;
#[allow(dead_code)]
#[path = "../daemon/world.rs"]
mod world;

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use ctr::{Ctr, Naming};
use document::blocks;

/// A plugin, in the words of the document.
#[derive(Clone, Copy)]
struct Plugin {
    name: &'static str,
    /// Part of the command that starts it.
    program: &'static str,
    /// What `ctr run` needs to use it.
    options: &'static [&'static str],
}

const OVERLAY: Plugin = Plugin {
    name: "rust-overlay",
    program: "proxy-snapshotter",
    options: &["--snapshotter", "rust-overlay"],
};

const SOCI: Plugin = Plugin {
    name: "soci",
    program: "soci-snapshotter-grpc",
    options: &["--snapshotter", "soci"],
};

const CONTENT: Plugin = Plugin {
    name: "rust-content",
    program: "proxy-content",
    options: &[],
};

/// The type by which `ctr plugins ls` calls the content store of containerd.
const OWN_CONTENT: &str = "io.containerd.content.v1.content";

const STAY: &str = "exec sleep 1000";

/// A plugin that runs; it is killed when this is dropped.
struct Running {
    child: Child,
}

impl Plugin {
    /// Where it listens.
    fn socket(&self) -> String {
        format!("/run/containerd/{}.sock", self.name)
    }

    /// Starts it with the command of the document, and waits until it listens.
    fn start(&self) -> Running {
        let blocks = blocks();
        let mut commands = blocks.iter().filter_map(document::shell);
        let command = commands.find(|text| text.starts_with(self.start_of_command()));
        let command = command.expect("the document starts the plugin");
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(format!("/run/containerd/{}.log", self.name))
            .expect("open the plugin's log");
        let child = Command::new("sh")
            .args(["-c", &format!("exec {command}")])
            .env("PATH", path_with_soci())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdout(log.try_clone().expect("a copy"))
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .expect("spawn the plugin");
        let running = Running { child };
        let what = format!("{} to listen", self.name);
        world::until(&what, || UnixStream::connect(self.socket()).is_ok());
        running
    }

    fn start_of_command(&self) -> &'static str {
        match self.program {
            "proxy-snapshotter" => "build/examples/debug/proxy-snapshotter",
            "proxy-content" => "build/examples/debug/proxy-content",
            other => other,
        }
    }

    /// Adds it to containerd's configuration as the document does.
    fn configure(&self) {
        let blocks = blocks();
        let heading = format!("[proxy_plugins.{}]", self.name);
        let text = blocks
            .iter()
            .find_map(|block| document::toml(block).filter(|text| text.contains(&heading)));
        let mut text = text.expect("the document configures the plugin").to_owned();
        let file = "/run/containerd/config.toml";
        let mut config = fs::read_to_string(file).expect("read the world's configuration");
        // The world has a list of its own, and a key cannot be there twice.
        let disabled = format!("disabled_plugins = [\"{OWN_CONTENT}\"]\n");
        if text.contains(&disabled) {
            text = text.replace(&disabled, "");
            let list = "disabled_plugins = [";
            assert!(config.contains(list), "{config}");
            config = config.replace(list, &format!("{list}\"{OWN_CONTENT}\", "));
        }
        fs::write(file, config + &text).expect("write the world's configuration");
    }

    /// Runs the commands of the document that show its use.
    fn try_it(&self) {
        let blocks = blocks();
        let named = |text: &&str| text.starts_with("ctr plugins ls") && text.contains(self.name);
        let script = blocks
            .iter()
            .filter_map(document::shell)
            .find(named)
            .expect("how to use it");
        let output = Command::new("sh")
            .args(["-euc", script])
            .output()
            .expect("run sh");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && printed.ends_with("hello\n") && printed.contains(" ok"),
            "{script}\n{output:?}"
        );
    }

    /// Whether `ctr plugins ls` says ok.
    fn is_ok(&self, ctr: &Ctr) -> bool {
        let list = ctr.ok("plugins ls");
        let mut rows = list
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.any(|row| row.contains(&self.name) && row.last() == Some(&"ok"))
    }

    fn detached(&self, ctr: &Ctr, id: &str) {
        let done = ctr.run(&[self.options, &["-d"]].concat(), id, &["sh", "-c", STAY]);
        assert!(done.status.success(), "run -d {id}: {done:?}");
    }

    /// A new container fails, since the plugin is dead; containerds word that differently.
    fn refuses(&self, ctr: &Ctr) {
        let done = self.hello(ctr, "new");
        let error = done.stderr.to_lowercase();
        let says_so = error.contains("unavailable") || error.contains(&self.socket());
        assert!(done.code() == 1 && says_so, "{done:?}");
    }

    /// Runs a container that says hello, whatever its end.
    fn hello(&self, ctr: &Ctr, id: &str) -> ctr::Done {
        ctr.run(&[self.options, &["--rm"]].concat(), id, &["echo", "hello"])
    }
}

impl Running {
    fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// PATH, with what `hack/setup` has unpacked first.
fn path_with_soci() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{}/build/soci/usr/bin:{path}", env!("CARGO_MANIFEST_DIR"))
}

/// Has containerd started anew, with the plugin, and nothing of the former one.
fn begin(plugin: &Plugin) -> (Ctr, Running) {
    world::stop_containerd();
    plugin.configure();
    for name in world::names("/var/lib/containerd") {
        let path = format!("/var/lib/containerd/{name}");
        fs::remove_dir_all(&path).unwrap_or_else(|error| panic!("remove {path}: {error}"));
    }
    let running = plugin.start();
    world::start_containerd();
    let ctr = Ctr::new(Naming::Name);
    ctr.ok(concat!(
        "image import ",
        env!("CARGO_MANIFEST_DIR"),
        "/build/busybox.tar"
    ));
    assert!(plugin.is_ok(&ctr), "{}", ctr.ok("plugins ls"));
    (ctr, running)
}

/// Kills a container's process and deletes its task.
fn delete_task(ctr: &Ctr, id: &str) {
    ctr.ok(&format!("task kill --signal SIGKILL {id}"));
    ctr.until_status(id, "STOPPED");
    ctr.call(&format!("task delete {id}"));
    world::until("the task to be deleted", || ctr.task(id).is_none());
}

/// A container runs on the snapshotter; the mount of its rootfs is what that told.
fn snapshotter_is_used(plugin: &Plugin) {
    let (ctr, running) = begin(plugin);
    plugin.hello(&ctr, "hello").expect(0, "hello\n");
    plugin.detached(&ctr, "box");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let directory = format!("/var/lib/containerd/{}/", plugin.name);
    assert!(
        mounts.contains(&directory),
        "no mount from {directory}:\n{mounts}"
    );
    let written = "echo data >/file && cat /file && rm /bin/vi && ! ls /bin/vi 2>/dev/null";
    ctr.exec("box", "one", written).expect(0, "data\n");
    ctr.remove("box");
    running.kill();
}

/// Whether the snapshotter of `examples/` has a container's snapshot; containerd puts its own
/// words before the container's id.
fn overlay_has(id: &str) -> bool {
    let index = fs::read_to_string("/var/lib/containerd/rust-overlay/index.json");
    index.expect("read the index").contains(&format!("/{id}\""))
}

/// Restarts containerd, and looks for container `box`.
fn restart_containerd(ctr: &Ctr) {
    world::stop_containerd();
    world::start_containerd();
    assert_eq!(ctr.task("box").expect("a task").1, "RUNNING");
    ctr.exec("box", "two", "echo works").expect(0, "works\n");
}

/// Waits until a new container runs on a plugin that is back.
fn until_it_works_again(plugin: &Plugin, ctr: &Ctr) {
    world::until("a new container to run", || {
        let done = plugin.hello(ctr, "again");
        let _ = ctr.call("container delete again");
        done.code() == 0 && done.stdout == "hello\n"
    });
}

/// What the document says of a snapshotter that dies and comes back.
fn snapshotter_dies(plugin: &Plugin) {
    let (ctr, running) = begin(plugin);
    plugin.detached(&ctr, "box");
    plugin.detached(&ctr, "other");
    running.kill();

    assert!(plugin.is_ok(&ctr), "{}", ctr.ok("plugins ls"));
    assert_eq!(ctr.task("box").expect("a task").1, "RUNNING");
    ctr.exec("box", "one", "echo works").expect(0, "works\n");
    plugin.refuses(&ctr);
    delete_task(&ctr, "other");
    // containerd forgets the snapshot now, and has it removed later.
    ctr.ok("container delete other");
    assert!(plugin.name != OVERLAY.name || overlay_has("other"));

    restart_containerd(&ctr);

    let running = plugin.start();
    until_it_works_again(plugin, &ctr);
    ctr.exec("box", "three", "echo works").expect(0, "works\n");
    ctr.remove("box");
    if plugin.name == OVERLAY.name {
        let what = "the snapshots to be removed";
        world::until(what, || !overlay_has("other") && !overlay_has("box"));
    }
    running.kill();
}

fn content_store_is_used(plugin: &Plugin) {
    let (_, running) = begin(plugin);
    plugin.try_it();
    let blobs = world::names("/var/lib/containerd/rust-content/blobs/sha256");
    // The layer, the configuration, the manifest and the index or the list of manifests.
    assert!(blobs.len() >= 3, "{blobs:?}");
    assert_eq!(
        world::names(format!("/var/lib/containerd/{OWN_CONTENT}")),
        [""; 0]
    );
    running.kill();
}

/// What the document says of a content store that dies and comes back.
fn content_store_dies(plugin: &Plugin) {
    let (ctr, running) = begin(plugin);
    plugin.detached(&ctr, "box");
    plugin.detached(&ctr, "other");
    running.kill();

    assert!(plugin.is_ok(&ctr), "{}", ctr.ok("plugins ls"));
    ctr.exec("box", "one", "echo works").expect(0, "works\n");
    plugin.refuses(&ctr);
    ctr.remove("other");

    restart_containerd(&ctr);

    let running = plugin.start();
    until_it_works_again(plugin, &ctr);
    ctr.remove("box");
    running.kill();
}

/// The commands of the document, with the snapshotter of `examples/`.
fn document_is_true(plugin: &Plugin) {
    let (_, running) = begin(plugin);
    plugin.try_it();
    running.kill();
}

/// The cases, for one daemon.
macro_rules! cases {
    ($version:literal; $($name:ident: $case:ident, $plugin:ident;)*) => {$(
        #[test]
        fn $name() {
            let name = concat!(module_path!(), "::", stringify!($name));
            crate::world::enter($version, name, || crate::$case(&crate::$plugin));
        }
    )*};
    ($($module:ident $version:literal)*) => {$(
        mod $module {
            cases! { $version;
                snapshotter_of_the_document: document_is_true, OVERLAY;
                snapshotter: snapshotter_is_used, OVERLAY;
                snapshotter_that_dies: snapshotter_dies, OVERLAY;
                soci: snapshotter_is_used, SOCI;
                soci_that_dies: snapshotter_dies, SOCI;
                content_store: content_store_is_used, CONTENT;
                content_store_that_dies: content_store_dies, CONTENT;
            }
        }
    )*};
}

cases! {
    containerd_1_6 "1.6"
    containerd_1_7 "1.7"
    containerd_2 "2"
}
