//! The messages of the Task service and of the Sandbox service to the types of `task` and
//! `sandbox`, and back: nothing else.

use std::time::SystemTime;

use crate::bundle::Bundle;
use crate::error::{Error, Result};
use crate::mount::Mount;
use crate::options::Options;
use crate::proto::podsandbox::PodSandboxConfig as Pod;
use crate::proto::sandbox::CreateSandboxRequest;
use crate::proto::{
    self, Any, EnumOrUnknown, Message, MessageField, SpecialFields, Timestamp, UnknownValueRef,
    task, timestamp,
};
use crate::reaper::Exit;
use crate::sandbox::{Config, Dns, Metadata, Mode};
use crate::stdio::Stdio;
use crate::task::{Checkpoint, Create, Deleted, Member, State, Status};

/// What a Create request asks for.
pub fn create(request: task::CreateTaskRequest) -> Result<Create> {
    Ok(Create {
        options: Options::decode(request.options.as_ref())?,
        bundle: Bundle::at(&request.bundle),
        rootfs: request.rootfs.into_iter().map(mount).collect(),
        stdio: Stdio {
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        },
        // The image itself has a link to the request's `parent_checkpoint`.
        checkpoint: Some(request.checkpoint).filter(|image| !image.is_empty()),
        id: request.id,
    })
}

/// A request's options, `containerd.runc.v1.CheckpointOptions`, and where the image
/// goes: the request's path before the options'. Field 10, `parent_path`, is containerd
/// 2.4's.
pub fn checkpoint(request: task::CheckpointTaskRequest) -> Result<Checkpoint> {
    let options = match request.options.as_ref() {
        None => proto::runc::CheckpointOptions::default(),
        Some(any) if any.type_url.rsplit('/').next() == Some(CHECKPOINT_OPTIONS) => {
            let options = proto::runc::CheckpointOptions::parse_from_bytes(&any.value);
            options.map_err(|e| Error::invalid(format!("decode {CHECKPOINT_OPTIONS}: {e}")))?
        }
        Some(any) if any.type_url.is_empty() => proto::runc::CheckpointOptions::default(),
        Some(any) => {
            let message = format!("checkpoint options of unknown type {:?}", any.type_url);
            return Err(Error::invalid(message));
        }
    };
    Ok(Checkpoint {
        image_path: if request.path.is_empty() {
            options.image_path
        } else {
            request.path
        },
        work_path: options.work_path.into(),
        parent_path: unknown_string_field(&options.special_fields, 10),
        exit: options.exit,
        open_tcp: options.open_tcp,
        external_unix_sockets: options.external_unix_sockets,
        terminal: options.terminal,
        file_locks: options.file_locks,
        empty_namespaces: options.empty_namespaces,
        cgroups_mode: options.cgroups_mode,
    })
}

/// Field `number`, a string that newer definitions of a message have and ours lacks; empty: it
/// is not there.
fn unknown_string_field(fields: &SpecialFields, number: u32) -> String {
    match fields.unknown_fields().get(number) {
        Some(UnknownValueRef::LengthDelimited(text)) => String::from_utf8_lossy(text).into_owned(),
        _ => String::new(),
    }
}

const CHECKPOINT_OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";

fn mount(mount: proto::Mount) -> Mount {
    Mount {
        kind: mount.type_,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    }
}

/// An exec request's stdio and process spec.
pub fn exec(request: &mut task::ExecProcessRequest) -> Result<(Stdio, Vec<u8>)> {
    let stdio = Stdio {
        terminal: request.terminal,
        stdin: std::mem::take(&mut request.stdin),
        stdout: std::mem::take(&mut request.stdout),
        stderr: std::mem::take(&mut request.stderr),
    };
    let missing = || Error::invalid(format!("exec {}: no process spec", request.exec_id));
    let spec = request.spec.take().ok_or_else(missing)?;
    Ok((stdio, spec.value))
}

/// When a process exited: Go's zero time if it did not.
fn exited_at(exit: Option<Exit>) -> MessageField<Timestamp> {
    let at: Option<SystemTime> = exit.map(|exit| exit.at);
    MessageField::some(timestamp(at))
}

fn exit_status(exit: Option<Exit>) -> u32 {
    exit.map_or(0, |exit| exit.status)
}

/// A status, as State's response.
pub fn status(status: Status) -> task::StateResponse {
    let code = match status.state {
        State::Running if status.pausing => proto::types::Status::PAUSING,
        State::Created => proto::types::Status::CREATED,
        State::Running => proto::types::Status::RUNNING,
        State::Paused => proto::types::Status::PAUSED,
        State::Stopped | State::Deleted => proto::types::Status::STOPPED,
    };
    task::StateResponse {
        id: status.id,
        bundle: status.bundle,
        pid: status.pid,
        status: EnumOrUnknown::new(code),
        stdin: status.stdio.stdin,
        stdout: status.stdio.stdout,
        stderr: status.stdio.stderr,
        terminal: status.stdio.terminal,
        exit_status: exit_status(status.exit),
        exited_at: exited_at(status.exit),
        ..Default::default()
    }
}

/// An exit, as Wait's response.
pub fn waited(exit: Option<Exit>) -> task::WaitResponse {
    task::WaitResponse {
        exit_status: exit_status(exit),
        exited_at: exited_at(exit),
        ..Default::default()
    }
}

/// What was deleted, as Delete's response.
pub fn deleted(deleted: Deleted) -> task::DeleteResponse {
    task::DeleteResponse {
        pid: deleted.pid,
        exit_status: exit_status(deleted.exit),
        exited_at: exited_at(deleted.exit),
        ..Default::default()
    }
}

/// A container's processes, as Pids' response.
pub fn pids(members: Vec<Member>) -> Result<task::PidsResponse> {
    let processes = members
        .into_iter()
        .map(process_info)
        .collect::<Result<_>>()?;
    Ok(task::PidsResponse {
        processes,
        ..Default::default()
    })
}

fn process_info(member: Member) -> Result<proto::types::ProcessInfo> {
    let details = |exec_id| {
        let details = proto::runc::ProcessDetails {
            exec_id,
            ..Default::default()
        };
        any("containerd.runc.v1.ProcessDetails", &details)
    };
    Ok(proto::types::ProcessInfo {
        pid: member.pid,
        info: member.exec_id.map(details).transpose()?.into(),
        ..Default::default()
    })
}

fn any(name: &str, message: &impl Message) -> Result<Any> {
    Ok(Any {
        type_url: name.to_owned(),
        value: encode(message)?,
        ..Default::default()
    })
}

/// A message's bytes.
pub fn encode(message: &impl Message) -> Result<Vec<u8>> {
    let bytes = message.write_to_bytes();
    bytes.map_err(|cause| Error::unknown(format!("encode a message: {cause}")))
}

/// What a CreateSandbox request asks for.
pub fn sandbox_config(request: &CreateSandboxRequest) -> Result<Config> {
    let missing = || Error::invalid("create sandbox: no options");
    let options = request.options.as_ref().ok_or_else(missing)?;
    if options.type_url.rsplit('/').next() != Some(SANDBOX_OPTIONS) {
        let message = format!("sandbox options of unknown type {:?}", options.type_url);
        return Err(Error::invalid(message));
    }
    let decoded = proto::limit_fields(&options.value)
        .and_then(|()| Pod::parse_from_bytes(&options.value).map_err(|e| e.to_string()));
    let pod = decoded.map_err(|e| Error::invalid(format!("decode {SANDBOX_OPTIONS}: {e}")))?;
    let metadata = pod.metadata.unwrap_or_default();
    let linux = pod.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let namespaces = security.namespace_options.unwrap_or_default();
    let user = namespaces.userns_options.as_ref();
    Ok(Config {
        metadata: Metadata {
            name: metadata.name,
            uid: metadata.uid,
            namespace: metadata.namespace,
            attempt: metadata.attempt,
        },
        hostname: pod.hostname,
        log_directory: pod.log_directory,
        dns: pod.dns_config.into_option().map(|dns| Dns {
            servers: dns.servers,
            searches: dns.searches,
            options: dns.options,
        }),
        labels: pod.labels.into_iter().collect(),
        annotations: pod.annotations.into_iter().collect(),
        cgroup_parent: linux.cgroup_parent,
        netns_path: request.netns_path.clone(),
        network: Mode::from_number(namespaces.network)?,
        pid: Mode::from_number(namespaces.pid)?,
        ipc: Mode::from_number(namespaces.ipc)?,
        user: user.map_or(Ok(Mode::Node), |user| Mode::from_number(user.mode))?,
        sysctls: linux.sysctls.into_iter().collect(),
    })
}

const SANDBOX_OPTIONS: &str = "runtime.v1.PodSandboxConfig";
