//! stub
pub struct Flags {
    pub namespace: String,
    pub id: String,
    pub address: String,
    pub ttrpc_address: String,
    pub debug: bool,
}
