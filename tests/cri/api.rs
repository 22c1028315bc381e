//! As much of Kubernetes' API server as the installer needs: it keeps the labels of one node.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::documents::command;

/// The node's name.
pub const NODE: &str = "node-1";

/// What a pod gets to see of the service account: the token, and the API server's certificate.
pub const ACCOUNT: &str = "/run/containerd/account";

/// Prints its port; its arguments are a certificate, its key, and the file for the labels.
const SERVER: &str = r#"
import http.server, json, os, ssl, sys
certificate, key, file = sys.argv[1:]
labels = {}

class Api(http.server.BaseHTTPRequestHandler):
    def do_PATCH(self):
        patch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        code = 200
        if self.headers["Authorization"] != "Bearer installer":
            code = 403
        elif self.headers["Content-Type"] != "application/merge-patch+json":
            code = 415
        elif self.path != "/api/v1/nodes/node-1":
            code = 404
        else:
            labels.update(patch["metadata"]["labels"])
            with open(file + ".new", "w") as new:
                json.dump({name: value for name, value in labels.items() if value is not None}, new)
            os.rename(file + ".new", file)
        self.send_response(code)
        self.end_headers()

server = http.server.HTTPServer(("127.0.0.1", 0), Api)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
"#;

/// A running API server; it ends when this is dropped.
pub struct Api {
    server: Child,
    /// Its port on 127.0.0.1.
    pub port: u16,
}

impl Api {
    /// Starts it, with a certificate and a service account of this world.
    pub fn start() -> Self {
        fs::create_dir(ACCOUNT).expect("make the service account's directory");
        give_token("installer");
        make_certificate(&file("key"), &file("crt"));
        fs::copy(file("crt"), format!("{ACCOUNT}/ca.crt")).expect("copy the certificate");
        let mut server = Command::new("/usr/bin/python3")
            .args(["-c", SERVER, &file("crt"), &file("key"), &file("labels")])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("run python3");
        let mut port = String::new();
        let stdout = server.stdout.take().expect("a pipe");
        BufReader::new(stdout)
            .read_line(&mut port)
            .expect("read the port");
        let port = port.trim().parse().expect("a port");
        Self { server, port }
    }

    /// The node's labels.
    pub fn labels(&self) -> Value {
        match fs::read(file("labels")) {
            Ok(text) => serde_json::from_slice(&text).expect("JSON"),
            Err(_) => serde_json::json!({}),
        }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Gives the service account this token. The API server takes `installer`.
pub fn give_token(token: &str) {
    fs::write(format!("{ACCOUNT}/token"), token).expect("write the token");
}

/// Gives the service account a certificate that is not the API server's.
pub fn give_certificate_of_another() {
    make_certificate(&file("key.other"), &format!("{ACCOUNT}/ca.crt"));
}

fn make_certificate(key: &str, certificate: &str) {
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let names = ["-subj", "/CN=api", "-addext", "subjectAltName=IP:127.0.0.1"];
    let files = ["-nodes", "-keyout", key, "-out", certificate];
    command(&[&["openssl", "req", "-x509"], &new_key[..], &names, &files].concat());
}

fn file(name: &str) -> String {
    format!("/run/containerd/api.{name}")
}
