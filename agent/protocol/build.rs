//! Generates the messages and the service from `agent.proto`.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=agent.proto");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    // A file that can be included, unlike the generator's own, whose first line is an attribute.
    std::fs::write(
        out.join("modules.rs"),
        "pub mod agent;\npub mod agent_ttrpc;\n",
    )?;
    ttrpc_codegen::Codegen::new()
        .out_dir(out)
        .input("agent.proto")
        .include(".")
        .rust_protobuf()
        // No reflection: the agent is small.
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().lite_runtime(true))
        .run()
}
