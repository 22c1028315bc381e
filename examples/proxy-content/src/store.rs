//! Blobs and unfinished writes on disk: `DIRECTORY/blobs/sha256/HEX`, and for each write
//! `DIRECTORY/ingest/HASH-OF-REF/{ref,expected,total,data}`.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use containerd_client::services::v1::{Info, Status as WriteStatus};
use prost_types::Timestamp;
use sha2::{Digest, Sha256};
use tonic::Status;

/// The store; one write at a time for each ref.
pub struct Store {
    blobs: PathBuf,
    ingest: PathBuf,
    busy: Arc<Mutex<HashSet<String>>>,
}

/// While it lives, nobody else writes to this ref.
pub struct Lock {
    of: String,
    busy: Arc<Mutex<HashSet<String>>>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut busy = self.busy.lock().unwrap_or_else(|error| error.into_inner());
        busy.remove(&self.of);
    }
}

/// An error with what was done to which file; a file that is not there is NotFound.
pub fn failed(what: &str, path: &Path, error: &io::Error) -> Status {
    let message = format!("{what} {}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => Status::not_found(message),
        _ => Status::internal(message),
    }
}

/// The digest of all that a file holds, as `sha256:HEX`.
pub fn digest(path: &Path) -> Result<String, Status> {
    let mut hash = Sha256::new();
    File::open(path)
        .and_then(|mut file| io::copy(&mut file, &mut Writer(&mut hash)))
        .map_err(|error| failed("read", path, &error))?;
    Ok(format!("sha256:{}", hex(&hash.finalize())))
}

/// `io::copy` into a hash.
struct Writer<'a>(&'a mut Sha256);

impl io::Write for Writer<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn time(time: io::Result<std::time::SystemTime>) -> Option<Timestamp> {
    time.ok().map(Timestamp::from)
}

impl Store {
    /// Opens the store in `directory`, which is made if it is not there.
    pub fn open(directory: &str) -> io::Result<Self> {
        let directory = Path::new(directory);
        let (blobs, ingest) = (directory.join("blobs/sha256"), directory.join("ingest"));
        fs::create_dir_all(&blobs)?;
        fs::create_dir_all(&ingest)?;
        Ok(Self {
            blobs,
            ingest,
            busy: Arc::default(),
        })
    }

    /// Where the blob with this digest is to be.
    pub fn blob(&self, digest: &str) -> Result<PathBuf, Status> {
        let valid = |hex: &&str| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
        match digest.strip_prefix("sha256:").filter(valid) {
            Some(hex) => Ok(self.blobs.join(hex)),
            None => Err(Status::invalid_argument(format!(
                "digest {digest:?}: is no sha256"
            ))),
        }
    }

    /// A blob's size and times.
    pub fn info(&self, digest: &str) -> Result<Info, Status> {
        let path = self.blob(digest)?;
        let metadata = fs::metadata(&path).map_err(|error| failed("find", &path, &error))?;
        Ok(Info {
            digest: digest.to_owned(),
            size: metadata.len() as i64,
            created_at: time(metadata.modified()),
            updated_at: time(metadata.modified()),
            ..Info::default()
        })
    }

    /// All blobs.
    pub fn infos(&self) -> Result<Vec<Info>, Status> {
        names(&self.blobs)?
            .iter()
            .map(|hex| self.info(&format!("sha256:{hex}")))
            .collect()
    }

    /// Removes a blob.
    pub fn delete(&self, digest: &str) -> Result<(), Status> {
        let path = self.blob(digest)?;
        fs::remove_file(&path).map_err(|error| failed("remove", &path, &error))
    }

    /// A blob, to read from `offset` on, and how much there is.
    pub fn open_blob(&self, digest: &str, offset: i64) -> Result<(File, u64), Status> {
        let path = self.blob(digest)?;
        let offset = u64::try_from(offset).unwrap_or(0);
        let open = || {
            let mut file = File::open(&path)?;
            let size = file.metadata()?.len();
            file.seek(SeekFrom::Start(offset))?;
            Ok((file, size.saturating_sub(offset)))
        };
        open().map_err(|error| failed("open", &path, &error))
    }

    /// Where the write with this ref keeps its files.
    pub fn place(&self, of: &str) -> PathBuf {
        self.ingest.join(hex(&Sha256::digest(of)))
    }

    /// Keeps others from this ref.
    pub fn lock(&self, of: &str) -> Result<Lock, Status> {
        let mut busy = self.busy.lock().unwrap_or_else(|error| error.into_inner());
        if !busy.insert(of.to_owned()) {
            return Err(Status::unavailable(format!(
                "ref {of}: another client writes to it"
            )));
        }
        Ok(Lock {
            of: of.to_owned(),
            busy: self.busy.clone(),
        })
    }

    /// How far a write has come.
    pub fn status(&self, of: &str) -> Result<WriteStatus, Status> {
        status(&self.place(of))
    }

    /// How far all writes have come.
    pub fn statuses(&self) -> Result<Vec<WriteStatus>, Status> {
        names(&self.ingest)?
            .iter()
            .map(|name| status(&self.ingest.join(name)))
            .collect()
    }

    /// Gives a write up.
    pub fn abort(&self, of: &str) -> Result<(), Status> {
        let place = self.place(of);
        fs::remove_dir_all(&place).map_err(|error| failed("remove", &place, &error))
    }
}

fn status(place: &Path) -> Result<WriteStatus, Status> {
    let text = |name: &str| {
        let path = place.join(name);
        fs::read_to_string(&path).map_err(|error| failed("read", &path, &error))
    };
    let data = place.join("data");
    let metadata = fs::metadata(&data).map_err(|error| failed("find", &data, &error))?;
    let started = fs::metadata(place.join("ref")).and_then(|metadata| metadata.modified());
    Ok(WriteStatus {
        r#ref: text("ref")?,
        offset: metadata.len() as i64,
        total: text("total")?.parse().unwrap_or(0),
        expected: text("expected")?,
        started_at: time(started),
        updated_at: time(metadata.modified()),
    })
}

fn names(directory: &Path) -> Result<Vec<String>, Status> {
    let entries = fs::read_dir(directory).map_err(|error| failed("read", directory, &error))?;
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    Ok(entries.flatten().map(name).collect())
}
