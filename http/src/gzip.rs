//! A request's body with its content coding undone, a bounded step at a time.
//!
//! tower-http's decompression reads one gzip member and, depending on how the network cut the body, drops or
//! refuses what follows. A body is taken whole or not at all here: all members, each with a right checksum,
//! and nothing else. Must not know how much a body may hold: whoever reads stops when it has enough, and what would
//! never let it have enough is refused here.

use std::io::{self, BufRead, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use flate2::bufread::MultiGzDecoder;
use http_body::{Body, Frame, SizeHint};

use crate::connection::BoxError;

/// What one step yields at most.
const STEP: usize = 16 * 1024;

/// A stream may be larger than what it holds, by headers and by the ends of blocks that its sender flushed: by this much,
/// and this many times. One that is larger yet says nothing, and could go on for ever without reaching any limit.
const OVERHEAD: usize = 64 * 1024;
const OVERHEAD_TIMES: usize = 16;

/// A body as it was before its content coding.
pub(crate) enum Decoded<B> {
    /// It had none.
    Plain(B),
    /// It was gzip.
    Gzip(Box<Gunzip<B>>),
}

/// The decoder with the body that it reads from.
pub(crate) struct Gunzip<B> {
    body: B,
    decoder: MultiGzDecoder<Feed>,
    step: Box<[u8]>,
    taken: usize,
    yielded: usize,
    done: bool,
}

/// The stream has grown without saying anything.
#[derive(Debug, thiserror::Error)]
#[error("the gzip stream is many times larger than what it holds")]
struct Padded;

/// What has arrived of the compressed body. An empty one would block until the body has ended.
#[derive(Default)]
struct Feed {
    part: Bytes,
    ended: bool,
}

impl Read for Feed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Feed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.part.is_empty() && !self.ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(&self.part)
    }

    fn consume(&mut self, amount: usize) {
        self.part.advance(amount);
    }
}

impl<B> Decoded<B> {
    pub(crate) fn gzip(body: B) -> Self {
        Decoded::Gzip(Box::new(Gunzip {
            body,
            // Reads the header as far as it is there, which is not at all yet.
            decoder: MultiGzDecoder::new(Feed::default()),
            step: vec![0; STEP].into(),
            taken: 0,
            yielded: 0,
            done: false,
        }))
    }
}

impl<B> Gunzip<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        while !self.done {
            match self.decoder.read(&mut self.step) {
                Ok(0) => self.done = true,
                Ok(n) => {
                    self.yielded += n;
                    return Poll::Ready(Some(Ok(Frame::data(Bytes::copy_from_slice(&self.step[..n])))));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.taken > OVERHEAD + OVERHEAD_TIMES * self.yielded {
                        return self.fail(Padded.into());
                    }
                    let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
                    let feed = self.decoder.get_mut();
                    match frame {
                        // Trailers say nothing to us.
                        Some(Ok(frame)) => {
                            feed.part = frame.into_data().unwrap_or_default();
                            self.taken += feed.part.len();
                        }
                        Some(Err(error)) => return self.fail(error.into()),
                        None => feed.ended = true,
                    }
                }
                Err(error) => return self.fail(error.into()),
            }
        }
        Poll::Ready(None)
    }

    fn fail(&mut self, error: BoxError) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.done = true;
        Poll::Ready(Some(Err(error)))
    }
}

impl<B> Body for Decoded<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Decoded::Plain(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Decoded::Gzip(gunzip) => gunzip.poll_step(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Decoded::Plain(body) => body.is_end_stream(),
            Decoded::Gzip(gunzip) => gunzip.done,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Decoded::Plain(body) => body.size_hint(),
            Decoded::Gzip(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use futures_util::FutureExt;
    use http_body_util::{BodyExt, StreamBody};
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// What becomes of a body that arrives in parts of `size`.
    fn decode(body: &[u8], size: usize) -> Result<Bytes, String> {
        let parts: Vec<_> = body
            .chunks(size)
            .map(|part| Ok::<_, io::Error>(Frame::data(Bytes::copy_from_slice(part))))
            .collect();
        let body = Decoded::gzip(StreamBody::new(futures_util::stream::iter(parts)));
        let collected = body.collect().now_or_never().unwrap();
        collected
            .map(|whole| whole.to_bytes())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_body_is_the_same_however_it_was_cut_and_of_however_many_members() {
        let plain = b"0123456789abcdef".repeat(5000);
        let two = [gzip(&plain), gzip(b"and more")].concat();
        for size in [1, 7, 100, two.len() - 1, two.len()] {
            assert_eq!(decode(&gzip(&plain), size).unwrap(), plain, "{size}");
            assert_eq!(
                decode(&two, size).unwrap(),
                [&plain[..], b"and more"].concat(),
                "{size}"
            );
        }
        assert_eq!(decode(&gzip(b""), 3).unwrap(), "");
    }

    #[test]
    fn part_of_a_stream_is_none_however_it_was_cut() {
        let whole = gzip(b"{\"a\": 1}");
        for size in [1, 5, whole.len() * 2] {
            for end in 0..whole.len() {
                assert!(decode(&whole[..end], size).is_err(), "{end} bytes by {size}");
                let second = [&whole[..], &whole[..end]].concat();
                assert_eq!(
                    decode(&second, size).is_ok(),
                    end == 0,
                    "one and {end} bytes by {size}"
                );
            }
        }
    }

    #[test]
    fn a_stream_that_never_says_anything_ends() {
        let empty = gzip(b"");
        let parts = futures_util::stream::repeat_with(|| {
            Ok::<_, io::Error>(Frame::data(Bytes::from(empty.repeat(100))))
        });
        let body = Decoded::gzip(StreamBody::new(Box::pin(parts)));
        let error = body.collect().now_or_never().unwrap().unwrap_err();
        assert!(error.is::<Padded>(), "{error}");
        // Flushed after every byte, as a careless sender does.
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        for byte in b"0123456789".repeat(10_000) {
            encoder.write_all(&[byte]).unwrap();
            encoder.flush().unwrap();
        }
        assert_eq!(decode(&encoder.finish().unwrap(), 1000).unwrap().len(), 100_000);
    }

    #[test]
    fn what_is_not_gzip_is_refused_also_after_what_is() {
        let whole = gzip(b"{\"a\": 1}");
        let mut wrong = whole.clone();
        let checksum = wrong.len() - 8;
        wrong[checksum] ^= 1;
        for size in [1, 5, 1000] {
            assert!(decode(b"{\"a\": 1}", size).is_err());
            assert!(decode(&wrong, size).is_err());
            assert!(
                decode(&[&whole[..], b"more"].concat(), size).is_err(),
                "by {size}"
            );
        }
    }
}
