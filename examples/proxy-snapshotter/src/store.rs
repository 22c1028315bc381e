//! Snapshots on disk: `DIRECTORY/NUMBER/{fs,work}` for each, and `DIRECTORY/index.json` with all
//! their names. The index is replaced as a whole, before an answer is given.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use containerd_snapshots::tonic::Status;
use containerd_snapshots::{Info, Kind, Usage, api::types::Mount};
use serde::{Deserialize, Serialize};

/// All snapshots.
pub struct Store {
    directory: PathBuf,
    index: Index,
}

#[derive(Default, Serialize, Deserialize)]
struct Index {
    /// The number of the next one; none is used twice.
    next: u64,
    snapshots: BTreeMap<String, Snapshot>,
}

#[derive(Serialize, Deserialize)]
struct Snapshot {
    number: u64,
    info: Info,
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Status {
    Status::internal(format!("{what} {}: {error}", path.display()))
}

impl Store {
    /// Opens the store in `directory`, which is made if it is not there. Removes what has no
    /// name: one was killed between two steps.
    pub fn open(directory: &str) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let directory = fs::canonicalize(directory)?;
        let index = match fs::read(directory.join("index.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Index::default(),
            Err(error) => return Err(error),
        };
        let store = Self { directory, index };
        for entry in fs::read_dir(&store.directory)? {
            let path = entry?.path();
            let known = store.index.snapshots.values();
            if path.is_dir()
                && !known
                    .map(|s| store.place(s.number))
                    .any(|place| place == path)
            {
                fs::remove_dir_all(path)?;
            }
        }
        Ok(store)
    }

    fn place(&self, number: u64) -> PathBuf {
        self.directory.join(number.to_string())
    }

    fn save(&self) -> Result<(), Status> {
        let path = self.directory.join("index.json");
        let new = self.directory.join("index.new");
        let bytes = serde_json::to_vec(&self.index)
            .map_err(|error| Status::internal(format!("encode the index: {error}")))?;
        fs::write(&new, bytes)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|error| failed("write", &path, &error))
    }

    fn get(&self, key: &str) -> Result<&Snapshot, Status> {
        let missing = || Status::not_found(format!("snapshot {key}: not found"));
        self.index.snapshots.get(key).ok_or_else(missing)
    }

    /// What containerd is to know of a snapshot.
    pub fn info(&self, key: &str) -> Result<Info, Status> {
        Ok(copy(&self.get(key)?.info))
    }

    /// All snapshots, as [`Store::info`].
    pub fn all(&self) -> Vec<Result<Info, Status>> {
        let snapshots = self.index.snapshots.values();
        snapshots.map(|snapshot| Ok(copy(&snapshot.info))).collect()
    }

    /// Changes labels: all, those that `fields` names, or nothing else.
    pub fn update(&mut self, info: Info, fields: Option<Vec<String>>) -> Result<Info, Status> {
        self.get(&info.name)?;
        let Some(snapshot) = self.index.snapshots.get_mut(&info.name) else {
            return Err(Status::internal("looked up just now"));
        };
        let labels = &mut snapshot.info.labels;
        for field in fields.unwrap_or_else(|| vec!["labels".to_owned()]) {
            match field.strip_prefix("labels.") {
                Some(name) => match info.labels.get(name) {
                    Some(value) => _ = labels.insert(name.to_owned(), value.clone()),
                    None => _ = labels.remove(name),
                },
                None if field == "labels" => *labels = info.labels.clone(),
                None => {
                    let message = format!("update snapshot {}: field {field}", info.name);
                    return Err(Status::invalid_argument(message));
                }
            }
        }
        snapshot.info.updated_at = SystemTime::now();
        self.save()?;
        self.info(&info.name)
    }

    /// The space that a snapshot takes beside its parents.
    pub fn usage(&self, key: &str) -> Result<Usage, Status> {
        let mut usage = Usage::default();
        let mut left = vec![self.place(self.get(key)?.number).join("fs")];
        while let Some(path) = left.pop() {
            let metadata = fs::symlink_metadata(&path).map_err(|e| failed("stat", &path, &e))?;
            usage.inodes += 1;
            usage.size += metadata.blocks() as i64 * 512;
            if metadata.is_dir() {
                let entries = fs::read_dir(&path).map_err(|e| failed("read", &path, &e))?;
                left.extend(entries.flatten().map(|entry| entry.path()));
            }
        }
        Ok(usage)
    }

    /// Makes an active snapshot or a view on top of `parent`, if that is not empty.
    pub fn add(
        &mut self,
        key: String,
        parent: String,
        labels: HashMap<String, String>,
        kind: Kind,
    ) -> Result<Vec<Mount>, Status> {
        if self.index.snapshots.contains_key(&key) {
            return Err(Status::already_exists(format!(
                "snapshot {key}: already exists"
            )));
        }
        if !parent.is_empty() && self.get(&parent)?.info.kind != Kind::Committed {
            return Err(Status::failed_precondition(format!(
                "snapshot {parent}: is not committed"
            )));
        }
        let number = self.index.next;
        self.index.next += 1;
        let info = Info {
            kind,
            name: key.clone(),
            parent,
            labels,
            ..Info::default()
        };
        self.create(number, &info.parent)?;
        self.index
            .snapshots
            .insert(key.clone(), Snapshot { number, info });
        self.save()?;
        self.mounts(&key)
    }

    /// The directories of a snapshot. The top one is the container's `/`, and has the owner and
    /// mode that its parent has.
    fn create(&self, number: u64, parent: &str) -> Result<(), Status> {
        let place = self.place(number);
        let top = place.join("fs");
        let make = || -> io::Result<()> {
            fs::create_dir_all(&top)?;
            fs::create_dir(place.join("work"))?;
            let mut mode = fs::Permissions::from_mode(0o755);
            if let Some(parent) = self.index.snapshots.get(parent) {
                let parent = fs::metadata(self.place(parent.number).join("fs"))?;
                mode = parent.permissions();
                std::os::unix::fs::chown(&top, Some(parent.uid()), Some(parent.gid()))?;
            }
            fs::set_permissions(&top, mode)
        };
        make().map_err(|error| failed("create", &place, &error))
    }

    /// How to mount a snapshot.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let snapshot = self.get(key)?;
        let fs = |number| self.place(number).join("fs").display().to_string();
        let mut lower = Vec::new();
        let mut parent = &snapshot.info.parent;
        while !parent.is_empty() {
            let below = self.get(parent)?;
            lower.push(fs(below.number));
            parent = &below.info.parent;
        }
        let writable = snapshot.info.kind == Kind::Active;
        let bind = |source: String, access: &str| Mount {
            r#type: "bind".to_owned(),
            source,
            options: vec![access.to_owned(), "rbind".to_owned()],
            ..Mount::default()
        };
        let access = if writable { "rw" } else { "ro" };
        let mount = match lower.len() {
            0 => bind(fs(snapshot.number), access),
            1 if !writable => bind(lower.remove(0), access),
            _ => {
                let mut options = vec![format!("lowerdir={}", lower.join(":"))];
                if writable {
                    let work = self.place(snapshot.number).join("work");
                    options.push(format!("upperdir={}", fs(snapshot.number)));
                    options.push(format!("workdir={}", work.display()));
                }
                Mount {
                    r#type: "overlay".to_owned(),
                    source: "overlay".to_owned(),
                    options,
                    ..Mount::default()
                }
            }
        };
        Ok(vec![mount])
    }

    /// Makes a committed snapshot called `name` of the active one `key`.
    pub fn commit(
        &mut self,
        name: String,
        key: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), Status> {
        if self.index.snapshots.contains_key(&name) {
            return Err(Status::already_exists(format!(
                "snapshot {name}: already exists"
            )));
        }
        if self.get(key)?.info.kind != Kind::Active {
            return Err(Status::failed_precondition(format!(
                "snapshot {key}: is not active"
            )));
        }
        if let Some(mut snapshot) = self.index.snapshots.remove(key) {
            let now = SystemTime::now();
            snapshot.info.kind = Kind::Committed;
            snapshot.info.name = name.clone();
            snapshot.info.labels = labels;
            (snapshot.info.created_at, snapshot.info.updated_at) = (now, now);
            self.index.snapshots.insert(name, snapshot);
        }
        self.save()
    }

    /// Removes a snapshot that is no other's parent.
    pub fn remove(&mut self, key: &str) -> Result<(), Status> {
        let number = self.get(key)?.number;
        if let Some(child) = self
            .index
            .snapshots
            .values()
            .find(|child| child.info.parent == key)
        {
            let message = format!("snapshot {key}: is the parent of {}", child.info.name);
            return Err(Status::failed_precondition(message));
        }
        self.index.snapshots.remove(key);
        self.save()?;
        // What cannot be removed now has no name any more, and is removed at the next start.
        if let Err(error) = fs::remove_dir_all(self.place(number)) {
            eprintln!("remove {}: {error}", self.place(number).display());
        }
        Ok(())
    }
}

fn copy(info: &Info) -> Info {
    Info {
        kind: match info.kind {
            Kind::Unknown => Kind::Unknown,
            Kind::View => Kind::View,
            Kind::Active => Kind::Active,
            Kind::Committed => Kind::Committed,
        },
        name: info.name.clone(),
        parent: info.parent.clone(),
        labels: info.labels.clone(),
        created_at: info.created_at,
        updated_at: info.updated_at,
    }
}
