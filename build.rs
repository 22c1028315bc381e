//! Compiles `protos/` (what the crates lack) without an installed `protoc`.

fn main() {
    println!("cargo:rerun-if-changed=protos");
    protobuf_codegen::Codegen::new()
        .pure()
        .include("protos")
        .input("protos/runtimeoptions.proto")
        .customize(
            protobuf_codegen::Customize::default()
                .gen_mod_rs(true)
                .lite_runtime(false),
        )
        .cargo_out_dir("protos")
        .run_from_script();
}
