//! stub
pub mod client;
pub mod frame;
pub mod server;
