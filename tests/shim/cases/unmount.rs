//! The end of rootfs mounts, whatever else is mounted there or holds on to them; and
//! file systems that do not answer.

use std::fs::{self, File};
use std::path::Path;

use containerd_shim_rs_v2::proto::Mount;
use containerd_shim_rs_v2::proto::types::Status;
use nix::mount::{MsFlags, mount};

use crate::harness::machine::{Silent, mounts_below};
use crate::harness::*;

#[track_caller]
fn mount_tmpfs(point: &Path) {
    let (kind, none) = (Some("tmpfs"), MsFlags::empty());
    mount(kind, point, kind, none, None::<&str>).expect("mount a tmpfs");
}

cases! {
    fn mounts_of_others_in_the_rootfs_are_unmounted(d) {
        let c = d.running("c");
        for place in ["tmp", "tmp", "run"] {
            mount_tmpfs(&c.bundle.join("rootfs").join(place));
        }
        assert_eq!(mounts_below(&c.bundle).len(), 4);
        c.end();
        c.finish();
    }

    fn delete_action_unmounts_mounts_of_others(d) {
        let c = d.running("c");
        mount_tmpfs(&c.bundle.join("rootfs/tmp"));
        c.kill_shim();
        d.delete("c");
        c.assert_gone();
    }

    fn busy_rootfs_is_unmounted_when_it_is_not_busy(d) {
        let other = d.container("other", &["sleep", "inf"]).group("pod").run();
        let c = d.container("c", &["true"]).group("pod").run();
        c.exit_status();
        let user = File::open(c.bundle.join("rootfs/bin/busybox")).unwrap();
        let delete = c.delete_pending();
        // Meanwhile the pod is served.
        assert_eq!(other.status(), Status::RUNNING);
        assert_eq!(other.pids().unwrap().len(), 1);
        drop(user);
        delete.wait().unwrap();
        c.assert_gone();
        other.end();
        other.finish();
    }

    fn busy_rootfs_is_an_error_and_unmounted_by_a_later_delete(d) {
        let c = d.container("c", &["sh", "-c", "exit 3"]).run();
        c.exit_status();
        let user = File::open(c.bundle.join("rootfs/bin/busybox")).unwrap();
        c.delete().refused(Code::UNKNOWN, "failed rootfs umount");
        assert_eq!((c.status(), c.exit_status()), (Status::STOPPED, 3));
        drop(user);
        assert_eq!(c.delete().unwrap().exit_status, 3);
        assert_eq!(d.events.until("c", "delete"), ["create", "start", "exit", "delete"]);
        c.shut_down();
    }

    fn dead_file_system_in_the_rootfs(d) {
        let c = d.running("c");
        let _silent = Silent::mounted(&c.bundle.join("rootfs/tmp"));
        c.end();
        c.finish();
    }

    fn dead_file_system_on_the_rootfs(d) {
        let c = d.running("c");
        // All that is mounted below is only to be reached through it.
        mount_tmpfs(&c.bundle.join("rootfs/tmp"));
        let _silent = Silent::mounted(&c.bundle.join("rootfs"));
        c.end();
        c.finish();
    }

    fn hanging_mount_does_not_delay_other_requests(d) {
        let other = d.container("other", &["sleep", "inf"]).group("pod").run();
        let point = d.path("silent");
        fs::create_dir(&point).unwrap();
        let silent = Silent::mounted(&point);
        let source = point.join("dir").to_str().unwrap().to_string();
        let hanging = Mount { type_: "bind".into(), source, options: vec!["bind".into()], ..Default::default() };
        let c = d.container("c", &["true"]).group("pod").mounts(vec![hanging]).shim();
        let create = c.create_pending();
        for _ in 0..3 {
            assert_eq!(other.status(), Status::RUNNING);
            other.exec("e", &["true"]).unwrap().start().unwrap();
            assert_eq!(other.process("e").exit_status(), 0);
            other.process("e").delete().unwrap();
        }
        assert!(!create.answered());
        drop(silent);
        assert!(create.wait().is_err());
        other.end();
        other.finish();
        c.assert_gone();
    }
}
