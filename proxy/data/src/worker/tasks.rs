//! How hyper's tasks are started.

use std::future::Future;

use hyper::rt::Executor;

/// Starts tasks on the current runtime. tokio moves a new task four times until it has its place, and once more when it ends; those of HTTP/2, two for
/// each request, measure several kilobytes, so that they move behind a pointer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tasks;

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        tokio::spawn(Box::pin(task));
    }
}
