//! Compiles `protos/` (what the crates lack) without an installed `protoc`, and tells the
//! crate which target and compiler it is built with. Has the relocations of the static binary
//! packed.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=protos");
    println!("cargo:rustc-env=SHIM_TARGET={}", variable("TARGET"));
    println!("cargo:rustc-env=SHIM_COMPILER={}", compiler());
    // 60 kB of relocations in 1 kB; musl's startup code knows them since 1.2.4, Rust's
    // since 1.93. Linkers that do not know them warn, and write the others.
    if variable("CARGO_CFG_TARGET_ENV") == "musl" {
        // In this form both a compiler and a bare linker (arm64: rust-lld) take it.
        println!("cargo:rustc-link-arg-bins=-zpack-relative-relocs");
    }
    protobuf_codegen::Codegen::new()
        .pure()
        .include("protos")
        .input("protos/runtimeoptions.proto")
        .input("protos/sandbox.proto")
        .input("protos/podsandbox.proto")
        .customize(
            protobuf_codegen::Customize::default()
                .gen_mod_rs(true)
                .lite_runtime(true),
        )
        .cargo_out_dir("protos")
        .run_from_script();
}

/// A variable that cargo sets for build scripts.
fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// What `rustc --version` prints. cargo runs this script again when the compiler changes.
#[expect(
    clippy::disallowed_methods,
    reason = "a build has no reaper, and no other children"
)]
fn compiler() -> String {
    let output = Command::new(variable("RUSTC")).arg("--version").output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}
