//! The one error type. It names the operation, the object and the cause, and
//! carries the code that a client sees. The text is made where the error arises. Callers add
//! only the operation that it was part of.

use std::fmt;

/// The code by which a client tells errors apart; the ttrpc codes that containerd uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Anything that containerd has no code for, among them every failure of the OCI
    /// runtime.
    Unknown,
    /// The request was given up by the client.
    Cancelled,
    /// The request itself is wrong, whatever the state.
    InvalidArgument,
    /// The request's deadline passed.
    DeadlineExceeded,
    /// The object does not exist, or not any more.
    NotFound,
    /// The object exists already.
    AlreadyExists,
    /// The object's state forbids the operation.
    FailedPrecondition,
    /// A limit was reached, for example the size of a message.
    ResourceExhausted,
    /// The operation or option is not supported.
    Unimplemented,
    /// The peer cannot be reached now.
    Unavailable,
}

/// An error with the code and the text that the client is to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    message: String,
}

/// `Result` with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind`, worded by `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// An error of [`Kind::Unknown`].
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(Kind::Unknown, message)
    }

    /// An error of [`Kind::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument, message)
    }

    /// An error of [`Kind::NotFound`]; containerd's clients match on the suffix.
    pub fn not_found(what: impl fmt::Display) -> Self {
        Self::new(Kind::NotFound, format!("{what}: not found"))
    }

    /// Its code.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Puts the operation this error was part of before its text: `OPERATION: TEXT`.
    pub fn within(mut self, operation: impl fmt::Display) -> Self {
        self.message = format!("{operation}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Turns any failure into an [`Error`] that says what was being done.
pub trait Context<T> {
    /// `OPERATION OBJECT: CAUSE`, of [`Kind::Unknown`].
    fn context<C: fmt::Display>(self, operation: impl FnOnce() -> C) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context<C: fmt::Display>(self, operation: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|cause| Error::unknown(format!("{}: {cause}", operation())))
    }
}
