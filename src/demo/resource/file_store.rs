//! The files and uploads of a resource.

use bytes::Bytes;
use serde_json::{Value, json};

/// The files of one resource, oldest first, and its uploads in parts.
#[derive(Debug, Default)]
pub(in crate::demo) struct FileStore {
    files: Vec<StoredFile>,
    uploads: Vec<MultipartUpload>,
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

impl FileStore {
    pub(in crate::demo) fn insert_file(&mut self, file: StoredFile) {
        self.files.push(file);
    }

    pub(in crate::demo) fn file(&self, id: &str) -> Option<&StoredFile> {
        self.files.iter().find(|file| file.id == id)
    }

    pub(in crate::demo) fn files(&self) -> &[StoredFile] {
        &self.files
    }

    pub(in crate::demo) fn remove_file(&mut self, id: &str) {
        self.files.retain(|file| file.id != id);
    }

    pub(in crate::demo) fn insert_upload(&mut self, upload: MultipartUpload) {
        self.uploads.push(upload);
    }

    pub(in crate::demo) fn upload_mut(&mut self, id: &str) -> Option<&mut MultipartUpload> {
        self.uploads.iter_mut().find(|upload| upload.id == id)
    }
}

impl MultipartUpload {
    /// Sets the status, and returns the changed upload object.
    pub(in crate::demo) fn set_status(&mut self, status: &str) -> Value {
        if let Some(map) = self.metadata.as_object_mut() {
            map.insert("status".to_owned(), json!(status));
        }
        self.metadata.clone()
    }
}
