//! Makes the server's side of `containerd.services.content.v1`, of the messages that
//! containerd-client has.

use tonic_build::manual::{Builder, Method, Service};

/// Name; what is sent; what is answered.
type Call = (&'static str, &'static str, &'static str);

/// Calls with one answer.
const SINGLE: [Call; 6] = [
    ("Info", "InfoRequest", "InfoResponse"),
    ("Update", "UpdateRequest", "UpdateResponse"),
    ("Delete", "DeleteContentRequest", ""),
    ("Status", "StatusRequest", "StatusResponse"),
    (
        "ListStatuses",
        "ListStatusesRequest",
        "ListStatusesResponse",
    ),
    ("Abort", "AbortRequest", ""),
];

/// Calls whose answers are a stream.
const STREAMS: [Call; 3] = [
    ("List", "ListContentRequest", "ListContentResponse"),
    ("Read", "ReadContentRequest", "ReadContentResponse"),
    ("Write", "WriteContentRequest", "WriteContentResponse"),
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let mut service = Service::builder()
        .name("Content")
        .package("containerd.services.content.v1");
    for call in SINGLE {
        service = service.method(method(call).build());
    }
    for call in STREAMS {
        let method = method(call).server_streaming();
        let method = if call.0 == "Write" {
            method.client_streaming()
        } else {
            method
        };
        service = service.method(method.build());
    }
    Builder::new()
        .build_client(false)
        .compile(&[service.build()]);
}

fn method((name, request, reply): Call) -> tonic_build::manual::MethodBuilder {
    let message = |name: &str| match name {
        "" => "crate::Empty".to_owned(),
        name => format!("::containerd_client::services::v1::{name}"),
    };
    Method::builder()
        .name(snake(name))
        .route_name(name)
        .input_type(message(request))
        .output_type(message(reply))
        .codec_path("::tonic_prost::ProstCodec")
}

/// `ListStatuses` → `list_statuses`.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}
