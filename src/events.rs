//! stub
use crate::mount::Mount;
use crate::stdio::Stdio;
use std::time::SystemTime;

/// What happened, in containerd's words; each is one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Create {
        container_id: String,
        bundle: String,
        rootfs: Vec<Mount>,
        io: Stdio,
        checkpoint: String,
        pid: u32,
    },
    Start {
        container_id: String,
        pid: u32,
    },
    ExecAdded {
        container_id: String,
        exec_id: String,
    },
    ExecStarted {
        container_id: String,
        exec_id: String,
        pid: u32,
    },
    /// `id` is the container's for init, else the exec's.
    Exit {
        container_id: String,
        id: String,
        pid: u32,
        exit_status: u32,
        exited_at: SystemTime,
    },
    Delete {
        container_id: String,
        pid: u32,
        exit_status: u32,
        exited_at: Option<SystemTime>,
    },
    Oom {
        container_id: String,
    },
    Paused {
        container_id: String,
    },
    Resumed {
        container_id: String,
    },
    Checkpointed {
        container_id: String,
        checkpoint: String,
    },
}

/// The ordered, lossless queue of events to containerd; clones share it.
#[derive(Clone)]
pub struct Events(());

impl Events {
    /// A queue to containerd's ttrpc socket at `address`, for `namespace`.
    pub fn new(_address: String, _namespace: String) -> Self {
        todo!()
    }
    /// Queues `event`, stamped with the time of this call. Never blocks, never fails.
    pub fn publish(&self, _event: Event) {
        todo!()
    }
    /// Delivers, one at a time, in order, for ever: reconnects and sends the head again until it was taken.
    pub async fn run(self) {
        todo!()
    }
    /// Waits until the queue is empty.
    pub async fn drained(&self) {
        todo!()
    }
}
