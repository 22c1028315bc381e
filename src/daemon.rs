//! stub

/// stub
pub fn run(_flags: &crate::cli::Flags) -> crate::error::Result<()> {
    todo!()
}
