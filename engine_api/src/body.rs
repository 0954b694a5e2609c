//! Bodies of answers: whole, or as they come.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Bytes, Frame, SizeHint};
use tokio::sync::mpsc;

use crate::problem::Problem;

/// Chunks that may wait for a client that does not read.
pub const WAITING: usize = 8;

/// The receiving end of what a thread or a task says.
pub type Chunks = mpsc::Receiver<Result<Bytes, Problem>>;

/// A body.
#[derive(Debug)]
pub enum Body {
    /// All of it; `None` once it was sent.
    Whole(Option<Bytes>),
    /// Chunks until the sender is gone. A problem breaks the connection off, so that nobody takes a part for the whole.
    Stream(Option<Bytes>, Chunks),
}

impl Body {
    /// Nothing.
    pub fn empty() -> Self {
        Self::Whole(None)
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(first, chunks) => match first.take() {
                Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                None => chunks.poll_recv(context).map(|chunk| {
                    chunk.map(|chunk| match chunk {
                        Ok(bytes) => Ok(Frame::data(bytes)),
                        Err(problem) => Err(io::Error::other(problem.detail)),
                    })
                }),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(..) => SizeHint::default(),
        }
    }
}
