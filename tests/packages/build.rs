//! Packages are built: for both architectures, and with the same bytes in another folder.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{NAME, binary, package, package_in, repository, run, sh};

/// The machine that the tests run on.
const MACHINE: &str = std::env::consts::ARCH;

/// Builds and packs for a machine in `folder`, with the same revision and time everywhere;
/// packages go to `to`, since other tests make theirs meanwhile.
fn build(folder: &Path, machine: &str, revision: &str, to: &Path) {
    let target = format!("TARGET={machine}-unknown-linux-musl");
    for what in ["build", "dist", "deb", "rpm"] {
        let mut make = Command::new("make");
        make.args(["--no-print-directory", what, &target])
            .env("SHIM_REVISION", revision)
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .env("PACKAGES", to)
            .env_remove("CARGO_TARGET_DIR")
            .current_dir(folder);
        run(&mut make).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// The revision that the built binary names.
fn revision() -> String {
    let version = run(Command::new(binary(MACHINE)).arg("-v")).expect("run the built binary");
    let line = version
        .lines()
        .find_map(|line| line.trim().strip_prefix("Revision: "));
    line.expect("a revision").to_owned()
}

#[test]
fn another_folder_gives_the_same_bytes() {
    sh("make --no-print-directory build");
    let revision = revision();
    let ours = tempfile::tempdir().expect("a folder");
    build(repository(), MACHINE, &revision, ours.path());

    let folder = tempfile::Builder::new()
        .prefix("another-folder-with-a-longer-name-")
        .tempdir_in(repository().join("build"))
        .expect("a folder");
    let copy = format!(
        "git ls-files -z --cached --others --exclude-standard |
            tar --null --ignore-failed-read -T - -c | tar -C '{}' -x",
        folder.path().display()
    );
    sh(&copy);
    let made = folder.path().join("packages");
    build(folder.path(), MACHINE, &revision, &made);

    let names: Vec<_> = crate::world::names(&made);
    assert_eq!(names.len(), 4, "{names:?}");
    for name in names {
        let bytes = fs::read(ours.path().join(&name)).expect(&name);
        assert!(
            bytes == fs::read(made.join(&name)).expect(&name),
            "{name} differs"
        );
    }
}

#[test]
fn tarball_fits_its_checksum_and_runs() {
    sh("make --no-print-directory build dist");
    let file = package(if MACHINE == "x86_64" {
        "amd64.tar.gz"
    } else {
        "arm64.tar.gz"
    });
    let file = file
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let to = tempfile::tempdir().expect("a folder");
    let printed = sh(&format!(
        "cd build/packages && sha256sum --check {file}.sha256 && tar -C {to} -xf {file} && \
         cd {to} && find . -type f && {NAME}-*/bin/{NAME} -v",
        to = to.path().display(),
    ));
    assert!(printed.starts_with(&format!("{file}: OK\n")), "{printed}");
    for file in [
        format!("/bin/{NAME}\n"),
        format!("/share/man/man8/{NAME}.8.gz\n"),
        format!("/share/bash-completion/completions/{NAME}\n"),
        format!("/share/doc/{NAME}/copyright\n"),
        "  Version: ".to_owned(),
    ] {
        assert!(printed.contains(&file), "no {file} in {printed}");
    }
}

/// The arm64 binary runs in emulation, and its packages say that they are for arm64.
#[test]
fn arm64_is_built_and_runs() {
    let made = tempfile::tempdir().expect("a folder");
    build(repository(), "aarch64", &revision(), made.path());
    let package = |end| package_in(made.path(), end);
    let emulated = |args: &str| {
        sh(&format!(
            "qemu-aarch64 {} {args}",
            binary("aarch64").display()
        ))
    };
    let version = emulated("-v");
    assert!(version.contains("aarch64-unknown-linux-musl"), "{version}");
    // `start` reads the bundle. (A server and `-info` need more of Linux than qemu-aarch64 has: see
    // the emulated machine.)
    let bundle = tempfile::tempdir().expect("a bundle");
    let error = crate::try_sh(&format!(
        "cd {} && qemu-aarch64 {} -namespace n -id i -address /none start </dev/null",
        bundle.path().display(),
        binary("aarch64").display(),
    ));
    let error = error.expect_err("there is no config.json");
    assert!(error.contains("config.json"), "{error}");

    let deb = sh(&format!(
        "dpkg-deb -f {} Architecture",
        package("arm64.deb").display()
    ));
    assert_eq!(deb, "arm64\n");
    let rpm = sh(&format!(
        "rpm -qp --qf '%{{ARCH}}' {}",
        package("aarch64.rpm").display()
    ));
    assert_eq!(rpm, "aarch64");
    let file = sh(&format!(
        "dpkg-deb --fsys-tarfile {} | tar -xO ./usr/bin/{NAME} | cmp - {} && echo same",
        package("arm64.deb").display(),
        binary("aarch64").display(),
    ));
    assert_eq!(file, "same\n");
}

/// An arm64 kernel, containerd, runc and busybox, all emulated: a container, an exec, a signal,
/// and nothing is left.
#[test]
fn arm64_container_runs_in_an_emulated_machine() {
    sh("make --no-print-directory build TARGET=aarch64-unknown-linux-musl");
    let printed = sh(&format!("hack/arm64 {}", binary("aarch64").display()));
    for line in [
        "exit status 7: a container on aarch64",
        "info: io.containerd.rs.v2",
        "exec: hello",
        "served by /usr/local/bin/containerd-shim-rs-v2",
        "left: ",
        "end",
    ] {
        assert!(
            printed.lines().any(|l| l == line),
            "no {line:?} in\n{printed}"
        );
    }
}
