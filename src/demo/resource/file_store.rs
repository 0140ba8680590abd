//! The files and uploads of a resource.

use bytes::Bytes;
use serde_json::{Value, json};

use super::bounded_store::{BoundedStore, StoreLimits};
use crate::demo::util::json::set_member;

const FILE_LIMITS: StoreLimits = StoreLimits { entries: 10_000, bytes: 256 * 1024 * 1024 };
const UPLOAD_LIMITS: StoreLimits = StoreLimits { entries: 1_000, bytes: 256 * 1024 * 1024 };
/// What a file or part takes beside its content.
const OBJECT_BYTES: usize = 1024;

/// The files of one resource, and its uploads in parts.
#[derive(Debug)]
pub(in crate::demo) struct FileStore {
    files: BoundedStore<StoredFile>,
    uploads: BoundedStore<MultipartUpload>,
}

#[derive(Debug, Clone)]
pub(in crate::demo) struct StoredFile {
    pub(in crate::demo) id: String,
    /// The file object that the API returns.
    pub(in crate::demo) metadata: Value,
    pub(in crate::demo) content: Bytes,
}

/// A large file that is uploaded in parts.
#[derive(Debug)]
pub(in crate::demo) struct MultipartUpload {
    pub(in crate::demo) id: String,
    /// The upload object that the API returns.
    pub(in crate::demo) metadata: Value,
    /// The id and the content of each part.
    pub(in crate::demo) parts: Vec<(String, Bytes)>,
}

impl Default for FileStore {
    fn default() -> Self {
        Self { files: BoundedStore::new(FILE_LIMITS), uploads: BoundedStore::new(UPLOAD_LIMITS) }
    }
}

impl FileStore {
    pub(in crate::demo) fn insert_file(&mut self, file: StoredFile) {
        let (id, bytes) = (file.id.clone(), file.content.len() + OBJECT_BYTES);
        self.files.insert(&id, file, bytes);
    }

    pub(in crate::demo) fn file(&self, id: &str) -> Option<&StoredFile> {
        self.files.get(id)
    }

    /// All files, oldest first.
    pub(in crate::demo) fn files(&self) -> impl Iterator<Item = &StoredFile> {
        self.files.iter().map(|(_, file)| file)
    }

    pub(in crate::demo) fn remove_file(&mut self, id: &str) {
        self.files.remove(id);
    }

    pub(in crate::demo) fn insert_upload(&mut self, upload: MultipartUpload) {
        let id = upload.id.clone();
        self.uploads.insert(&id, upload, OBJECT_BYTES);
    }

    pub(in crate::demo) fn upload_mut(&mut self, id: &str) -> Option<&mut MultipartUpload> {
        self.uploads.get_mut(id)
    }

    /// Adds a part to an upload; `false` if there is no such upload.
    pub(in crate::demo) fn add_part(&mut self, upload_id: &str, part_id: &str, content: Bytes) -> bool {
        let Some(upload) = self.uploads.get_mut(upload_id) else { return false };
        let bytes = content.len() + OBJECT_BYTES;
        upload.parts.push((part_id.to_owned(), content));
        self.uploads.add_bytes(upload_id, bytes);
        true
    }
}

impl MultipartUpload {
    /// Sets the status, and returns the changed upload object.
    pub(in crate::demo) fn set_status(&mut self, status: &str) -> Value {
        set_member(&mut self.metadata, "status", json!(status));
        self.metadata.clone()
    }

    /// Whether parts may still be added.
    pub(in crate::demo) fn is_pending(&self) -> bool {
        self.metadata.get("status").and_then(Value::as_str) == Some("pending")
    }
}
