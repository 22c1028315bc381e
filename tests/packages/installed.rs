//! Installed, used by containerd, and removed: nothing is left, and a program in use stays.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::ctr::{Ctr, Naming};
use crate::{NAME, markdown, sh, try_sh, world};

/// What an installation or a package manager may write to.
const WRITTEN: [&str; 4] = ["/usr", "/etc", "/var/lib/dpkg", "/var/lib/rpm"];

/// The containerd of these worlds.
const VERSION: &str = "1.7";

/// A way to install.
struct Way {
    install: String,
    remove: String,
    /// Where the program then is.
    bin: &'static str,
}

fn by_make() -> Way {
    Way {
        install: "make --no-print-directory install".to_owned(),
        remove: "make --no-print-directory uninstall".to_owned(),
        bin: "/usr/local/bin",
    }
}

/// The commands of a row in the table of docs/install.md, for this machine.
fn commands(row: &str, column: usize) -> Vec<String> {
    let commands = markdown::spans("docs/install.md", row, column);
    let of_this_machine = |command: String| match cfg!(target_arch = "aarch64") {
        true => command
            .replace("amd64", "arm64")
            .replace("x86_64", "aarch64"),
        false => command,
    };
    commands.into_iter().map(of_this_machine).collect()
}

/// Packs as the table has it; how it is then installed and removed.
fn by_package(row: &str) -> Way {
    let install = commands(row, 1);
    let [pack, install] = &install[..] else {
        panic!("to pack and to install: {install:?}");
    };
    sh(pack);
    // Debian's rpm wants to be told that it is meant.
    let meant = |command: &str| command.replacen("rpm -", "rpm --force-debian --nodeps -", 1);
    Way {
        install: meant(install),
        remove: meant(&commands(row, 2)[0]),
        bin: "/usr/bin",
    }
}

/// Puts a throw-away layer over each directory of [`WRITTEN`]; the layers are below the
/// returned directory, which is on a file system of its own.
pub fn cover() -> &'static Path {
    let layers = Path::new("/run/layers");
    fs::create_dir_all(layers).expect("create /run/layers");
    let none = None::<&str>;
    mount(
        Some("layers"),
        layers,
        Some("tmpfs"),
        MsFlags::empty(),
        none,
    )
    .expect("mount a tmpfs");
    for directory in WRITTEN {
        let layer = layers.join(directory.trim_start_matches('/').replace('/', "-"));
        let (upper, work) = (layer.join("upper"), layer.join("work"));
        fs::create_dir_all(directory).expect("create what is to be covered");
        fs::create_dir_all(&upper).expect("create a layer");
        fs::create_dir_all(&work).expect("create a layer");
        let options = format!(
            "lowerdir={directory},upperdir={},workdir={}",
            upper.display(),
            work.display()
        );
        mount(
            Some("layer"),
            directory,
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap_or_else(|error| panic!("mount a layer over {directory}: {error}"));
    }
    layers
}

/// The files below a layer that were added or changed, but for those of the package
/// manager, which keeps a record of itself.
fn written(layers: &Path) -> String {
    sh(&format!(
        "cd {} && find . -path '*/upper/*' -type f ! -path './var-lib-*'",
        layers.display()
    ))
}

/// Only the installed program is there for containerd to find.
pub fn hide_the_copies_of_the_world() {
    for name in [NAME, "containerd-shim-runc-v2"] {
        fs::remove_file(Path::new("/run/containerd/shims").join(name)).expect("remove a shim");
    }
}

/// Installs, runs a container by the runtime's name, fails to remove, deletes the container,
/// removes.
fn case(way: &Way) {
    let ctr = Ctr::new(Naming::Name);
    let layers = cover();
    hide_the_copies_of_the_world();
    let program = format!("{}/{NAME}", way.bin);
    assert!(
        !Path::new(&program).exists(),
        "{program} is there before it is installed"
    );
    ctr.run(&["--rm"], "early", &["true"])
        .expect_error("containerd-shim-rs-v2");

    sh(&way.install);
    let files = written(layers);
    assert!(
        files.contains(&format!("/bin/{NAME}\n")),
        "written: {files}"
    );
    ctr.detached("box", "exec sleep 1000");
    let servers = world::shims();
    let exe = fs::read_link(format!("/proc/{}/exe", servers[0])).expect("the server's program");
    assert_eq!(exe.to_str(), Some(program.as_str()));
    ctr.exec("box", "one", "echo in use").expect(0, "in use\n");

    let refusal = try_sh(&way.remove).expect_err("removal while a server runs");
    let named = format!("pid {}, for {}/box", servers[0], world::namespace());
    assert!(refusal.contains(&named), "no {named:?} in {refusal}");
    assert!(Path::new(&program).exists(), "removed after all");
    // To install the same again is an upgrade, which a server may see.
    sh(&way.install.replace(" -i ", " -U --replacepkgs "));
    let refusal = try_sh(&way.remove).expect_err("removal after an upgrade");
    assert!(refusal.contains(&named), "no {named:?} in {refusal}");
    ctr.exec("box", "two", "echo in use").expect(0, "in use\n");
    ctr.remove("box");
    world::until("the server to end", || world::shims().is_empty());

    sh(&way.remove);
    assert_eq!(written(layers), "", "left behind");
    assert!(!Path::new(&program).exists(), "{program} is still there");
    let directories = sh(&format!(
        "find {layers} -name '*{NAME}*' -type d ! -path '*/var-lib-*'",
        layers = layers.display()
    ));
    assert_eq!(directories, "", "left behind");
}

/// A program that is removed by force while it serves, and a link in its place to
/// containerd's own shim: a restarted containerd keeps the container.
fn forced() {
    let ctr = Ctr::new(Naming::Name);
    cover();
    hide_the_copies_of_the_world();
    let way = by_make();
    sh(&way.install);
    ctr.detached("box", "exec sleep 1000");
    let commands = markdown::block("docs/install.md", "FORCE=1 make uninstall").text;
    let printed = sh(&format!("{{ {commands} }} 2>&1"));
    assert!(printed.contains("although servers of it run"), "{printed}");
    world::stop_containerd();
    world::start_containerd();
    assert_eq!(ctr.task("box").expect("the task is kept").1, "RUNNING");
    ctr.exec("box", "one", "echo kept").expect(0, "kept\n");
    ctr.remove("box");
    // And the name now means the other shim.
    ctr.run(&["--rm"], "new", &["echo", "go"]).expect(0, "go\n");
}

#[test]
fn make_install_is_used_and_removed() {
    world::enter(
        VERSION,
        concat!(module_path!(), "::make_install_is_used_and_removed"),
        || case(&by_make()),
    );
}

#[test]
fn debian_package_is_used_and_purged() {
    world::enter(
        VERSION,
        concat!(module_path!(), "::debian_package_is_used_and_purged"),
        || case(&by_package("Debian package")),
    );
}

#[test]
fn rpm_is_used_and_removed() {
    world::enter(
        VERSION,
        concat!(module_path!(), "::rpm_is_used_and_removed"),
        || case(&by_package("rpm")),
    );
}

/// There is nothing that would remove it.
fn tarball() {
    cover();
    hide_the_copies_of_the_world();
    for command in commands("tarball", 1) {
        sh(&command);
    }
    let ctr = Ctr::new(Naming::Name);
    ctr.run(&["--rm"], "box", &["echo", "in use"])
        .expect(0, "in use\n");
    let readme = sh("find /usr/local/share -name README.md");
    let directory = Path::new(readme.trim()).parent().expect("a directory");
    assert!(directory.join("docs/upgrade.md").exists(), "{readme}");
}

#[test]
fn tarball_is_used() {
    world::enter(
        VERSION,
        concat!(module_path!(), "::tarball_is_used"),
        tarball,
    );
}

#[test]
fn link_to_gos_shim_after_a_forced_removal_keeps_containers() {
    world::enter(
        VERSION,
        concat!(
            module_path!(),
            "::link_to_gos_shim_after_a_forced_removal_keeps_containers"
        ),
        forced,
    );
}

/// `DESTDIR` is for those who pack; what is installed there is removed from there.
#[test]
fn destdir_is_installed_to_and_uninstalled_from() {
    let root = tempfile::tempdir().expect("a folder");
    let make = |what: &str| {
        sh(&format!(
            "make --no-print-directory {what} DESTDIR={} PREFIX=/opt/shim",
            root.path().display()
        ))
    };
    let files = || {
        sh(&format!(
            "cd {} && find . ! -type d | sort",
            root.path().display()
        ))
    };
    make("install");
    let link = root.path().join("opt/shim/bin/containerd-shim-runc-v2");
    std::os::unix::fs::symlink(format!("/opt/shim/bin/{NAME}"), &link).expect("make a link");
    assert_eq!(
        files(),
        format!(
            "./opt/shim/bin/{NAME}\n./opt/shim/bin/containerd-shim-runc-v2\n\
             ./opt/shim/share/bash-completion/completions/{NAME}\n./opt/shim/share/man/man8/{NAME}.8.gz\n"
        )
        .lines()
        .map(|line| format!("{line}\n"))
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect::<String>()
    );
    let printed = make("uninstall");
    assert!(
        printed.contains("containerd-shim-runc-v2 was a link to it"),
        "{printed}"
    );
    fs::remove_file(link).expect("remove the link");
    assert_eq!(files(), "");
}
