//! Bytes in a file, packed by zstd and summed by SHA-256 as they lie there. Blocks: each call wants a thread of its own. Knows nothing
//! of rows.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use zstd::stream::{read, write};

/// Text of tables gets a fifth of its size; more effort gains little.
const LEVEL: i32 = 3;
/// What is read at once.
const BLOCK: usize = 1 << 20;

/// How a file turned out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Packed {
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// Writes all that comes, and has it on the disk.
pub(super) fn pack(path: &Path, mut parts: mpsc::Receiver<Bytes>) -> io::Result<Packed> {
    let summed = Summed {
        inner: BufWriter::new(File::create_new(path)?),
        hash: Sha256::new(),
        bytes: 0,
    };
    let mut packing = write::Encoder::new(summed, LEVEL)?;
    while let Some(part) = parts.blocking_recv() {
        packing.write_all(&part)?;
    }
    let Summed { inner, hash, bytes } = packing.finish()?;
    inner.into_inner().map_err(io::Error::from)?.sync_all()?;
    Ok(Packed {
        bytes,
        sha256: hex(hash),
    })
}

/// Sums up a file; `passed` is told of every block.
pub(super) fn sum(path: &Path, passed: impl Fn(u64)) -> io::Result<Packed> {
    let (mut file, mut hash, mut bytes) = (File::open(path)?, Sha256::new(), 0);
    let mut block = vec![0; BLOCK];
    loop {
        let read = file.read(&mut block)?;
        if read == 0 {
            let sha256 = hex(hash);
            return Ok(Packed { bytes, sha256 });
        }
        hash.update(&block[..read]);
        bytes += read as u64;
        passed(read as u64);
    }
}

/// Hands over what a file holds, until nobody takes it any more.
pub(super) fn unpack(path: &Path, parts: &mpsc::Sender<Bytes>) -> io::Result<()> {
    let mut packed = read::Decoder::with_buffer(BufReader::new(File::open(path)?))?;
    loop {
        let mut block = Vec::with_capacity(BLOCK);
        packed.by_ref().take(BLOCK as u64).read_to_end(&mut block)?;
        if block.is_empty() || parts.blocking_send(block.into()).is_err() {
            return Ok(());
        }
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sums what passes through.
struct Summed<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(part)?;
        self.hash.update(&part[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_comes_out_and_damage_shows_in_the_sum() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("rows.zst");
        let row = Bytes::from("one row with some text\n".repeat(100_000));
        let (sender, receiver) = mpsc::channel(2);
        sender.try_send(row.clone()).expect("room");
        drop(sender);
        let packed = pack(&path, receiver).expect("written");
        assert_eq!(sum(&path, |_| ()).expect("read"), packed);
        let (sender, mut receiver) = mpsc::channel(99);
        unpack(&path, &sender).expect("unpacked");
        drop(sender);
        let mut out = Vec::new();
        while let Some(part) = receiver.blocking_recv() {
            out.extend_from_slice(&part);
        }
        assert!(out == row);
        let mut bytes = std::fs::read(&path).expect("a file");
        bytes[40] ^= 1;
        std::fs::write(&path, bytes).expect("written");
        assert_ne!(sum(&path, |_| ()).expect("read").sha256, packed.sha256);
    }
}
