//! Rows for the Logs Ingestion API, within its limits.
//!
//! Limits: <https://learn.microsoft.com/azure/azure-monitor/service-limits>.

use std::io::{self, Write as _};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

/// The most bytes of one upload before compression. The API allows 1 MB, compressed and uncompressed.
pub(super) const MAX_UPLOAD_BYTES: usize = 1_000_000 - 16 * 1024;
/// The most bytes of prompt and of completion. Azure silently truncates a field at 64 KB; we truncate it
/// first and say so in `content_cut`.
const MAX_FIELD_BYTES: usize = 64_000;

/// Splits rows into uploads within the limit.
pub(super) fn split_into_uploads(rows: &[Bytes]) -> Vec<&[Bytes]> {
    let mut uploads = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (index, row) in rows.iter().enumerate() {
        if size + row.len() + 1 > MAX_UPLOAD_BYTES && index > start {
            uploads.extend(rows.get(start..index));
            (start, size) = (index, 0);
        }
        size += row.len() + 1;
    }
    uploads.extend(rows.get(start..).filter(|rest| !rest.is_empty()));
    uploads
}

/// Makes a row of a record: the record itself, with long prompts and completions truncated.
pub(super) fn record_to_row(record: &[u8]) -> Bytes {
    if record.len() < MAX_FIELD_BYTES {
        return Bytes::copy_from_slice(record);
    }
    // Escaping can make a text several times longer. Of a very long record less is kept, so that the row fits
    // into an upload.
    let max_field_bytes =
        if record.len() < MAX_UPLOAD_BYTES / 2 { MAX_FIELD_BYTES } else { MAX_FIELD_BYTES / 2 };
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(record) else {
        return Bytes::copy_from_slice(record);
    };
    for name in ["prompt", "completion"] {
        if let Some(Value::String(text)) = fields.get_mut(name)
            && text.len() > max_field_bytes
        {
            text.truncate(text.floor_char_boundary(max_field_bytes));
            fields.insert("content_cut".to_owned(), Value::Bool(true));
        }
    }
    Bytes::from(Value::Object(fields).to_string())
}

/// A JSON array of the rows, compressed with gzip: the API accepts only an array.
pub(super) fn gzip_json_array(rows: &[Bytes]) -> io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(b"[")?;
    for (index, row) in rows.iter().enumerate() {
        encoder.write_all(if index == 0 { b"" } else { b"," })?;
        encoder.write_all(row)?;
    }
    encoder.write_all(b"]")?;
    Ok(Bytes::from(encoder.finish()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_stay_within_the_limit_and_contain_every_row() {
        let sizes = [10, MAX_UPLOAD_BYTES - 100, 50, 200, MAX_UPLOAD_BYTES / 2, MAX_UPLOAD_BYTES / 2, 1];
        let rows: Vec<Bytes> = sizes.iter().map(|size| Bytes::from(vec![b'x'; *size])).collect();
        let uploads = split_into_uploads(&rows);
        assert_eq!(uploads.concat(), rows);
        assert!(uploads.iter().all(|call| call.iter().map(Bytes::len).sum::<usize>() <= MAX_UPLOAD_BYTES));
        assert_eq!(uploads.len(), 3);
    }

    #[test]
    fn a_long_record_is_truncated_and_marked() {
        let record = serde_json::json!({"request_id": "x", "prompt": "é".repeat(400_000), "completion": "short", "content_cut": false});
        let row: Value = serde_json::from_slice(&record_to_row(record.to_string().as_bytes())).unwrap();
        assert!(row["prompt"].as_str().unwrap().len() <= MAX_FIELD_BYTES);
        assert_eq!((&row["completion"], &row["content_cut"]), (&"short".into(), &true.into()));
        assert_eq!(record_to_row(b"short"), "short");
    }
}
