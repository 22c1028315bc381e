//! Rootfs mounts: every kind of them, and where they go.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use containerd_shim_rs_v2::proto::Mount;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::harness::container::Container;
use crate::harness::machine::{MountEntry, mount_entries_below, mounts_below};
use crate::harness::seccomp::Denied;
use crate::harness::*;

fn a_mount(kind: &str, source: impl AsRef<Path>, options: &[&str]) -> Mount {
    Mount {
        type_: kind.into(),
        source: source.as_ref().to_str().unwrap().into(),
        options: options.iter().map(|option| option.to_string()).collect(),
        ..Default::default()
    }
}

fn bind(options: &[&str]) -> Mount {
    a_mount("bind", bundle::rootfs(), &[&["rbind"], options].concat())
}

/// The shared rootfs with a writable layer on it.
fn overlay(d: &Daemon) -> Mount {
    overlay_on(d, bundle::rootfs())
}

/// A writable layer, the new directory `upper`, on `lower`.
fn overlay_on(d: &Daemon, lower: &Path) -> Mount {
    let [upper, work] = ["upper", "work"].map(|name| {
        let dir = d.path(name);
        fs::create_dir_all(&dir).unwrap();
        format!("{name}dir={}", dir.display())
    });
    let lower = format!("lowerdir={}", lower.display());
    a_mount("overlay", "overlay", &[&lower, &upper, &work])
}

/// What is mounted at the container's rootfs, the topmost last.
fn at_rootfs(c: &Container) -> Vec<MountEntry> {
    let rootfs = c.bundle.join("rootfs");
    let mut entries = mount_entries_below(&rootfs);
    entries.retain(|entry| entry.point == rootfs);
    entries
}

fn has(entry: &MountEntry, option: &str) -> bool {
    entry.options.iter().any(|o| o == option)
}

/// Runs the container, which is to exit with 0, and asserts that nothing of it stays.
#[track_caller]
fn assert_runs(c: &Container) {
    c.start().unwrap();
    assert_eq!(c.exit_status(), 0);
    c.finish();
}

/// An ext4 image of the shared rootfs.
fn image(d: &Daemon) -> PathBuf {
    let image = d.path("image");
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-d"]).arg(bundle::rootfs()).arg(&image);
    let output = process::run(&mut mkfs, &[], d.hang_timeout);
    assert_eq!(output.status, 0, "mkfs.ext4: {}", output.stderr_text());
    image
}

/// The shared rootfs in a file system whose owners can be mapped on every kernel.
struct Mappable(PathBuf);

impl Mappable {
    fn mounted(d: &Daemon) -> Mappable {
        let dir = d.path("mappable");
        fs::create_dir(&dir).unwrap();
        let mut command = Command::new("mount");
        command.args(["-o", "loop"]).arg(image(d)).arg(&dir);
        let output = process::run(&mut command, &[], d.hang_timeout);
        assert_eq!(output.status, 0, "mount: {}", output.stderr_text());
        Mappable(dir)
    }
}

impl Drop for Mappable {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// What a loop device says of itself.
fn loop_setting(device: &str, setting: &str) -> Option<String> {
    let name = device.trim_start_matches("/dev/");
    let path = format!("/sys/block/{name}/loop/{setting}");
    Some(fs::read_to_string(path).ok()?.trim().into())
}

/// A process that is not to outlive its test, whatever becomes of that.
struct KilledInTheEnd(i32);

impl Drop for KilledInTheEnd {
    fn drop(&mut self) {
        process::signal(self.0, Signal::SIGKILL);
    }
}

/// A helper for FUSE file systems that does what `script` says.
fn helper(d: &Daemon, script: &str) {
    let dir = d.path("helpers");
    fs::create_dir(&dir).unwrap();
    write_program(&dir.join("mount.fuse3"), script);
    let path = std::env::var("PATH").unwrap();
    d.set_env("PATH", &format!("{}:{path}", dir.display()));
}

/// Mounts at targets behind symlinks that would lead out of the rootfs.
#[track_caller]
fn assert_targets_stay_in_the_rootfs(d: &Daemon) {
    let upper = overlay(d);
    let outside = d.path("outside");
    fs::create_dir(&outside).unwrap();
    let links = d.path("upper");
    for dir in ["a", "b", "c", "d"] {
        fs::create_dir(links.join(dir)).unwrap();
    }
    symlink("/a", links.join("absolute")).unwrap();
    symlink("../../../../../../b", links.join("relative")).unwrap();
    // Inside it names what outside is `outside`.
    fs::create_dir_all(links.join(outside.strip_prefix("/").unwrap())).unwrap();
    symlink(&outside, links.join("out")).unwrap();
    let at = |target: &str| Mount {
        target: target.into(),
        ..a_mount("tmpfs", "tmpfs", &[])
    };
    let mounts = vec![
        upper,
        at("absolute"),
        at("/relative"),
        at("out"),
        at("c/../../d"),
    ];
    let c = d.container("c", &["true"]).mounts(mounts).created();
    let rootfs = c.bundle.join("rootfs");
    let inside = rootfs.join(outside.strip_prefix("/").unwrap());
    let expected = [
        rootfs.clone(),
        rootfs.join("a"),
        rootfs.join("b"),
        inside,
        rootfs.join("d"),
    ];
    assert_eq!(mounts_below(&d.path("")), expected);
    assert_runs(&c);
}

/// Mounts an image that is a file.
#[track_caller]
fn assert_image_is_mounted(d: &Daemon) {
    let image = image(d);
    let c = d
        .shell("c", "echo text > /tmp/file")
        .mounts(vec![a_mount("ext4", &image, &["loop"])])
        .created();
    let device = at_rootfs(&c)[0].source.clone();
    assert_eq!(
        loop_setting(&device, "backing_file").as_deref(),
        image.to_str()
    );
    assert_eq!(loop_setting(&device, "dio").as_deref(), Some("0"));
    assert_runs(&c);
    d.eventually("the device is free", || {
        loop_setting(&device, "backing_file").as_deref() != image.to_str()
    });
}

cases! {
    fn bind_mount(d) {
        let c = d.container("c", &["true"]).mounts(vec![bind(&["rw"])]).created();
        assert!(has(&at_rootfs(&c)[0], "rw"), "{:?}", at_rootfs(&c));
        assert_runs(&c);
    }

    fn read_only_bind_mount(d) {
        let c = d.container("c", &["true"]).mounts(vec![bind(&["ro", "nosuid", "noatime"])]).created();
        let entry = &at_rootfs(&c)[0];
        assert!(["ro", "nosuid", "noatime"].iter().all(|o| has(entry, o)), "{entry:?}");
        assert_runs(&c);
    }

    fn mount_that_is_remounted_read_only(d) {
        let mounts = vec![bind(&["rw"]), bind(&["remount", "ro"])];
        let c = d.container("c", &["true"]).mounts(mounts).created();
        let entries = at_rootfs(&c);
        assert!(entries.len() == 1 && has(&entries[0], "ro"), "{entries:?}");
        assert_runs(&c);
    }

    fn propagation(d) {
        let rootfs = d.bundles_dir().join("c/rootfs");
        let mounts = vec![bind(&["shared"]), a_mount("bind", &rootfs, &["bind", "slave"]), bind(&["rprivate"])];
        let c = d.container("c", &["true"]).mounts(mounts).created();
        let found: Vec<Vec<String>> = at_rootfs(&c).into_iter().map(|entry| entry.propagation).collect();
        let is = |n: usize, kind: &str| found[n].len() == 1 && found[n][0].starts_with(kind);
        assert!(is(0, "shared:") && is(1, "master:") && found[2].is_empty(), "{found:?}");
        assert_runs(&c);
    }

    fn overlay_can_be_written_to(d) {
        let c = d.shell("c", "echo text > /file").mounts(vec![overlay(d)]);
        let c = c.spec(|spec| spec["root"]["readonly"] = false.into()).created();
        assert_runs(&c);
        assert_eq!(fs::read_to_string(d.path("upper/file")).unwrap(), "text\n");
    }

    fn overlay_with_options_longer_than_a_page(d) {
        let mut layers: Vec<String> = (0..200).map(|n| {
            let dir = d.path(&format!("snapshots/{n}/fs"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("file{n}")), "").unwrap();
            dir.to_str().unwrap().into()
        }).collect();
        // The lowest one, in a place of its own, where it has to be in common with the others.
        let lowest = d.path("snapshots/lowest");
        let output = process::run(Command::new("cp").arg("-a").arg(bundle::rootfs()).arg(&lowest), &[], d.hang_timeout);
        assert_eq!(output.status, 0, "{}", output.stderr_text());
        layers.push(lowest.to_str().unwrap().into());
        let option = format!("lowerdir={}", layers.join(":"));
        assert!(option.len() > 4096);
        let layered = a_mount("overlay", "overlay", &[&option]);
        let c = d.container("c", &["test", "-e", "/file0", "-a", "-e", "/file199"]).mounts(vec![layered]).created();
        assert_runs(&c);
    }

    fn bind_mount_with_mapped_owners(d) {
        let source = Mappable::mounted(d);
        let mapped = a_mount("bind", &source.0, &["bind", "ro", "uidmap=0:100000:1000", "gidmap=0:100000:1000"]);
        let c = d.container("c", &["true"]).user_namespace(100_000).mounts(vec![mapped]).created();
        let shell = fs::symlink_metadata(c.bundle.join("rootfs/bin/busybox")).unwrap();
        assert_eq!((shell.uid(), shell.gid()), (100_000, 100_000));
        assert!(has(at_rootfs(&c).last().unwrap(), "ro"), "{:?}", at_rootfs(&c));
        assert_runs(&c);
    }

    fn overlay_with_mapped_owners(d) {
        let source = Mappable::mounted(d);
        let mut mapped = overlay_on(d, &source.0);
        mapped.options.extend(["uidmap=0:100000:1000".into(), "gidmap=0:100000:1000".into()]);
        for dir in ["upper", "work"] {
            std::os::unix::fs::chown(d.path(dir), Some(100_000), Some(100_000)).unwrap();
        }
        let c = d.shell("c", "busybox stat -c %u /bin/busybox > /owner").user_namespace(100_000);
        let c = c.spec(|spec| spec["root"]["readonly"] = false.into()).mounts(vec![mapped]).created();
        assert_eq!(mounts_below(&c.bundle), [c.bundle.join("rootfs")]);
        assert_runs(&c);
        // Root inside, by what it saw and by what it wrote.
        let owner = d.path("upper/owner");
        assert_eq!(fs::read_to_string(&owner).unwrap(), "0\n");
        assert_eq!(fs::metadata(&owner).unwrap().uid(), 100_000);
        assert_eq!(mounts_below(&d.path("")), std::slice::from_ref(&source.0));
    }

    fn invalid_id_map(d) {
        let c = d.container("c", &["true"]).mounts(vec![bind(&["uidmap=zero", "gidmap=0:0:1"])]).shim();
        assert!(c.create().is_err());
        c.assert_gone();
        c.shut_down();
    }

    fn image_on_a_loop_device(d) {
        assert_image_is_mounted(d);
    }

    fn image_on_a_loop_device_without_loop_configure(d) {
        const LOOP_CONFIGURE: u32 = 0x4C0A;
        d.deny(&[Denied::ioctl(LOOP_CONFIGURE, libc::EINVAL)]);
        assert_image_is_mounted(d);
    }

    fn read_only_image_on_a_loop_device(d) {
        let image = image(d);
        let before = fs::read(&image).unwrap();
        let c = d.container("c", &["true"]).mounts(vec![a_mount("ext4", &image, &["loop", "ro"])]).created();
        let entry = &at_rootfs(&c)[0];
        assert!(has(entry, "ro"), "{entry:?}");
        let name = entry.source.trim_start_matches("/dev/");
        assert_eq!(fs::read_to_string(format!("/sys/block/{name}/ro")).unwrap(), "1\n");
        assert_runs(&c);
        assert!(before == fs::read(&image).unwrap(), "the image was written to");
    }

    fn image_on_a_loop_device_with_direct_io(d) {
        let image = image(d);
        let direct = File::options().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(&image).is_ok();
        let c = d.container("c", &["true"]).mounts(vec![a_mount("ext4", image, &["loop", "ro", "direct-io"])]).created();
        let device = at_rootfs(&c)[0].source.clone();
        // As far as the image's file system goes along.
        assert_eq!(loop_setting(&device, "dio").as_deref(), Some(if direct { "1" } else { "0" }));
        assert_runs(&c);
    }

    fn image_that_does_not_exist(d) {
        let c = d.container("c", &["true"]).mounts(vec![a_mount("ext4", "/no/such/image", &["loop"])]).shim();
        let failure = c.create().unwrap_err();
        assert!(failure.message.contains("/no/such/image"), "{failure:?}");
        c.assert_gone();
        c.shut_down();
    }

    fn fuse_helper_mounts(d) {
        let told = d.path("told");
        let script = format!("echo \"$@\" > {}; exec mount --bind \"$1\" \"$2\"", told.display());
        helper(d, &script);
        let mounts = vec![a_mount("fuse3.some-fs", bundle::rootfs(), &["allow_other", "key=value"])];
        let c = d.container("c", &["true"]).mounts(mounts).created();
        let expected = format!(
            "{} {}/rootfs -o allow_other -o key=value -t some-fs\n",
            bundle::rootfs().display(), c.bundle.display(),
        );
        assert_eq!(fs::read_to_string(told).unwrap(), expected);
        assert_runs(&c);
    }

    fn fuse_helper_fails(d) {
        helper(d, "echo the moon is full >&2; exit 3");
        let c = d.container("c", &["true"]).mounts(vec![a_mount("fuse3.some-fs", "source", &[])]).shim();
        let failure = c.create().unwrap_err();
        assert!(failure.message.contains("the moon is full"), "{failure:?}");
        c.assert_gone();
        c.shut_down();
    }

    fn fuse_helper_is_killed_with_the_server(d) {
        let pid = d.path("pid");
        helper(d, &format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep inf", pid.display()));
        let c = d.container("c", &["true"]).mounts(vec![a_mount("fuse3.some-fs", "source", &[])]).shim();
        let _create = c.create_pending();
        d.eventually("the helper runs", || pid.exists());
        c.kill_shim();
        let helper = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        let _killed = KilledInTheEnd(helper);
        d.eventually("the helper ends", || !process::alive(helper));
    }

    fn fuse_helper_whose_child_keeps_its_output_open(d) {
        let pid = d.path("pid");
        helper(d, &format!("sleep 1000 & echo $! > {}; exec mount --bind \"$1\" \"$2\"", pid.display()));
        let c = d.container("c", &["true"]).mounts(vec![a_mount("fuse3.some-fs", bundle::rootfs(), &[])]).shim();
        let created = c.create();
        let daemon: i32 = fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        let left = process::alive(daemon);
        process::signal(daemon, nix::sys::signal::Signal::SIGKILL);
        created.unwrap();
        assert!(left, "the daemon died with its helper");
        assert_runs(&c);
    }

    fn targets_stay_in_the_rootfs(d) {
        assert_targets_stay_in_the_rootfs(d);
    }

    fn targets_stay_in_the_rootfs_without_openat2(d) {
        d.deny(&[Denied::call(libc::SYS_openat2, libc::ENOSYS)]);
        assert_targets_stay_in_the_rootfs(d);
    }

    fn targets_stay_in_the_rootfs_while_others_mount(d) {
        // The denial is the OCI runtime's too, and crun tries again without end.
        if runtime() == "crun" { return }
        // What openat2(2) answers if something was mounted or renamed meanwhile, anywhere.
        d.deny(&[Denied::call(libc::SYS_openat2, libc::EAGAIN)]);
        assert_targets_stay_in_the_rootfs(d);
    }

    fn target_that_does_not_exist(d) {
        let target = Mount { target: "no/such/place".into(), ..a_mount("tmpfs", "tmpfs", &[]) };
        let c = d.container("c", &["true"]).mounts(vec![bind(&["ro"]), target]).shim();
        let failure = c.create().unwrap_err();
        assert!(failure.message.contains("no/such/place"), "{failure:?}");
        c.assert_gone();
        c.shut_down();
    }

    fn option_for_containerds_mount_manager(d) {
        let c = d.container("c", &["true"]).mounts(vec![bind(&["ro", "X-containerd.mkdir.path=/x"])]).shim();
        let failure = c.create().unwrap_err();
        assert!(failure.message.contains("was not consumed by the mount manager"), "{failure:?}");
        c.assert_gone();
        c.shut_down();
    }

    fn rootfs_directory_is_created(d) {
        let c = d.container("c", &["true"]).shim();
        fs::remove_dir(c.bundle.join("rootfs")).unwrap();
        c.create().unwrap();
        assert_runs(&c);
    }
}
