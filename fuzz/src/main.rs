//! libFuzzer's program for all targets: FUZZ_TARGET names the one to run.

#![no_main]

use std::sync::LazyLock;

use containerd_shim_rs_v2::fuzz::{FuzzTarget, TARGETS};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<&FuzzTarget> = LazyLock::new(|| {
    let wanted = std::env::var("FUZZ_TARGET").unwrap_or_default();
    TARGETS
        .iter()
        .find(|(name, _)| *name == wanted)
        .unwrap_or_else(|| panic!("FUZZ_TARGET={wanted:?} is no target"))
});

fuzz_target!(|data: &[u8]| (TARGET.1)(data));
