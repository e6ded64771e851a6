//! Checksums: what the manifest knows a content by.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// A manifest key: the checksum, any bytes the caller chose.
pub type Checksum = Arc<[u8]>;

/// A SHA-256 digest.
pub type Sha256Digest = [u8; 32];

/// What has been read, or written, of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its digest.
    pub digest: Sha256Digest,
    /// Bytes.
    pub size: u64,
}

impl Content {
    /// Whether it is what a manifest key says, if that has the form of a digest.
    ///
    /// # Errors
    /// [`Error::ChecksumMismatch`].
    pub(crate) fn verify(&self, checksum: &[u8]) -> Result<()> {
        let actual = hex(&self.digest);
        if is_digest(checksum) && actual.as_bytes() != checksum {
            return Err(Error::ChecksumMismatch { actual });
        }
        Ok(())
    }
}

/// The digest of a content in memory.
pub(crate) fn digest(content: &[u8]) -> Sha256Digest {
    Sha256::digest(content).into()
}

/// A digest in lower-case hexadecimal.
#[must_use]
pub fn hex(digest: &Sha256Digest) -> String {
    digits(digest).map(char::from).iter().collect()
}

/// The manifest key of a content: its digest in lower-case hexadecimal.
pub(crate) fn key(digest: &Sha256Digest) -> Checksum {
    digits(digest).into()
}

fn digits(digest: &Sha256Digest) -> [u8; 64] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    std::array::from_fn(|index| {
        let byte = digest[index / 2];
        let half = if index % 2 == 0 { byte >> 4 } else { byte & 15 };
        DIGITS[usize::from(half)]
    })
}

/// Whether a manifest key has the form of a digest, and so is a claim about the content.
pub(crate) fn is_digest(checksum: &[u8]) -> bool {
    checksum.len() == 64 && is_hex(checksum)
}

/// Whether all of it are lower-case hexadecimal digits.
pub(crate) fn is_hex(text: &[u8]) -> bool {
    text.iter()
        .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}
