//! Log lines about requests: at debug each request with its outcome and duration, at warn each
//! one that was cancelled before its answer. At other levels it costs a comparison.
//!
//! Lacks on purpose: the other fields of a request. Process specs hold secrets.

use std::rc::Rc;

use log::Level;
use tokio::time::Instant;

use crate::error::Result;
use crate::proto::{self, Field};
use crate::ttrpc::server::{Call, Class};

/// A request under way. If it is dropped before [`RequestLog::answered`], the request was
/// cancelled: its deadline has passed or its client has left.
pub struct RequestLog {
    call: Rc<Call>,
    received_at: Instant,
    answered: bool,
}

impl RequestLog {
    /// For a request that has just been received.
    pub fn new(call: Rc<Call>) -> Self {
        Self {
            call,
            received_at: Instant::now(),
            answered: false,
        }
    }

    /// The request has its answer.
    pub fn answered(mut self, answer: &Result<Vec<u8>>) {
        self.answered = true;
        if !log::log_enabled!(Level::Debug) {
            return;
        }
        let (method, (id, exec)) = (&self.call.method, subject(&self.call));
        let duration = self.received_at.elapsed();
        match answer {
            Ok(_) => log::debug!(duration:?, id, exec; "request {method}: ok"),
            Err(error) => log::debug!(duration:?, id, exec; "request {method}: {error}"),
        }
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        // Clients often leave while they wait for an exit.
        let level = match super::class(&self.call) == Class::Parks {
            true => Level::Debug,
            false => Level::Warn,
        };
        if self.answered || level > log::max_level() {
            return;
        }
        let (method, (id, exec)) = (&self.call.method, subject(&self.call));
        log::log!(
            level,
            duration:? = self.received_at.elapsed(),
            id,
            exec;
            "request {method}: cancelled: the client disconnected or its deadline passed"
        );
    }
}

/// The container ID and the exec ID of a request; empty if it has none.
fn subject(call: &Call) -> (String, String) {
    // In all requests field 1 is the container ID; in these, field 2 is the exec ID.
    let has_exec = matches!(
        call.method.as_str(),
        "State" | "Start" | "Delete" | "Exec" | "Kill" | "ResizePty" | "CloseIO" | "Wait"
    );
    let mut subject = (String::new(), String::new());
    // A malformed request has no IDs, or those before the fault.
    let _ = proto::visit_fields(&call.payload, |number, field| {
        let place = match number {
            1 => &mut subject.0,
            2 if has_exec => &mut subject.1,
            _ => return Ok(()),
        };
        if let Field::Bytes(text) = field {
            *place = String::from_utf8_lossy(text).into_owned();
        }
        Ok(())
    });
    subject
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Message, task};

    fn subject_of(method: &str, request: &impl Message) -> (String, String) {
        subject(&Call {
            service: "containerd.task.v3.Task".into(),
            method: method.into(),
            payload: request.write_to_bytes().unwrap(),
        })
    }

    /// Sets the ids of a request that has both, and compares what is found in it.
    macro_rules! finds_both {
        ($($method:literal $request:ident,)*) => {$(
            let mut request = task::$request::new();
            (request.id, request.exec_id) = ("c".into(), "e".into());
            let expected = ("c".to_owned(), "e".to_owned());
            assert_eq!(subject_of($method, &request), expected, $method);
        )*};
    }

    macro_rules! finds_one {
        ($($method:literal $request:ident,)*) => {$(
            let mut request = task::$request::new();
            request.id = "c".into();
            let expected = ("c".to_owned(), String::new());
            assert_eq!(subject_of($method, &request), expected, $method);
        )*};
    }

    #[test]
    fn ids_of_each_request_are_found() {
        finds_both!(
            "State" StateRequest,
            "Start" StartRequest,
            "Delete" DeleteRequest,
            "Exec" ExecProcessRequest,
            "Kill" KillRequest,
            "ResizePty" ResizePtyRequest,
            "CloseIO" CloseIORequest,
            "Wait" WaitRequest,
        );
        finds_one!(
            "Pids" PidsRequest,
            "Pause" PauseRequest,
            "Resume" ResumeRequest,
            "Update" UpdateTaskRequest,
            "Stats" StatsRequest,
            "Connect" ConnectRequest,
            "Shutdown" ShutdownRequest,
        );
        let create = task::CreateTaskRequest {
            id: "c".into(),
            bundle: "/b".into(),
            ..Default::default()
        };
        assert_eq!(subject_of("Create", &create).1, "");
        let checkpoint = task::CheckpointTaskRequest {
            id: "c".into(),
            path: "/image".into(),
            ..Default::default()
        };
        assert_eq!(subject_of("Checkpoint", &checkpoint).1, "");
    }

    #[test]
    fn malformed_request_has_no_ids() {
        let call = Call {
            service: String::new(),
            method: "State".into(),
            payload: b"\xff".to_vec(),
        };
        assert_eq!(subject(&call), (String::new(), String::new()));
    }
}
