//! Further tries: whether, when, and over which endpoint.
//!
//! Source: Envoy `RetryStateImpl`, `Router::Filter::doRetry`. Routes without a retry policy never come here.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderValue, Request, Response};
use http_body::Body;
use hyper::body::Incoming;

use super::{
    body::{Progress, Repeatable, RequestBody},
    exchange::{Exchange, UpstreamRequest},
    failure::Failure,
    forward,
    head::Head,
    headers as names,
    limits::Expired,
    trace,
};
use crate::{
    error::ResponseFlag,
    model::{
        cluster::{Cluster, Endpoint, Limits},
        labels::Labels,
        rbac::RequestView,
        retry::{Reset, RetryPolicy},
        route::{Forward, HostRewrite},
    },
    upstream::{
        outlier::Report,
        pick::{self, Avoid, PickContext},
        pool::{AcquireError, Lease, Protocol},
    },
    worker,
};

/// Decides about further tries of one request.
pub(super) struct Retry<'a> {
    policy: &'a RetryPolicy,
    left: u32,
    /// Bound of the next pause.
    pause: Duration,
    /// Counts the try that is under way as a retry.
    held: Option<Held>,
}

/// What is to be done after a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// It stands.
    Done,
    /// It stands, because it was the last that may be.
    Exhausted,
    /// It stands, because the circuit breaker lets no further one through.
    Overflow,
    /// Another one, after a pause.
    After(Duration),
}

impl<'a> Retry<'a> {
    /// `None` for a request that the policy does not admit.
    pub fn new(policy: &'a RetryPolicy, request: &RequestView<'_>) -> Option<Self> {
        policy.admits(request).then_some(Retry { policy, left: policy.retries, pause: policy.base, held: None })
    }

    /// Decides. `asked` is the pause that the response asks for; `random` gives uniformly distributed numbers.
    fn next(
        &mut self,
        wanted: bool,
        asked: Option<Duration>,
        cluster: &Arc<Cluster>,
        high_priority: bool,
        random: &mut dyn FnMut() -> u64,
    ) -> Next {
        let stats = &cluster.stats;
        if self.held.take().is_some() && !wanted {
            stats.upstream_rq_retry_success().inc();
        }
        if !wanted {
            return Next::Done;
        }
        let Some(left) = self.left.checked_sub(1) else {
            stats.upstream_rq_retry_limit_exceeded().inc();
            return Next::Exhausted;
        };
        self.left = left;
        if !limits(cluster, high_priority).may_retry() {
            stats.upstream_rq_retry_overflow().inc();
            return Next::Overflow;
        }
        stats.upstream_rq_retry().inc();
        self.held = Some(Held::new(cluster.clone(), high_priority));
        let mut share = |of: Duration| Duration::from_millis(random() % (of.as_millis() as u64).max(1));
        Next::After(match asked {
            Some(asked) => {
                stats.upstream_rq_retry_backoff_ratelimited().inc();
                asked + share(asked / 2)
            }
            None => {
                stats.upstream_rq_retry_backoff_exponential().inc();
                let pause = share(self.pause);
                self.pause = (self.pause * 2).min(self.policy.longest);
                pause
            }
        })
    }
}

fn limits(cluster: &Cluster, high_priority: bool) -> &Limits {
    if high_priority { &cluster.high_limits } else { &cluster.limits }
}

/// A retry in the circuit breaker's count; the end of it is counted by `Drop`.
struct Held {
    cluster: Arc<Cluster>,
    high_priority: bool,
}

impl Held {
    fn new(cluster: Arc<Cluster>, high_priority: bool) -> Self {
        limits(&cluster, high_priority).retries.fetch_add(1, Relaxed);
        Held { cluster, high_priority }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        limits(&self.cluster, self.high_priority).retries.fetch_sub(1, Relaxed);
    }
}

/// A request with all that a further try of it needs.
pub(super) struct Tries<'a> {
    pub retry: Retry<'a>,
    pub exchange: &'a mut Exchange,
    /// The try that is under way or was the last.
    pub upstream: &'a mut UpstreamRequest,
    pub head: &'a mut Head,
    pub action: &'a Forward,
    /// What the route asks of endpoints.
    pub labels: Option<&'a Arc<Labels>>,
    /// For clusters that hash.
    pub hash: Option<u64>,
    pub downstream: Protocol,
    pub original: Option<SocketAddr>,
    /// Of the route, for all tries together.
    pub timeout: Option<Duration>,
    /// Most bytes of the request's body that are kept to be sent again.
    pub buffer: u32,
}

/// A try's end: a response, a failure, or neither in time.
type Ended = Result<Result<(Response<Incoming>, Lease), Failure>, Expired>;

impl Tries<'_> {
    /// Sends the request until it is answered or no further try is due. The caller bounds the time of all tries together.
    pub async fn run(mut self, request: Request<RequestBody>) -> Ended {
        let cluster = self.upstream.cluster.clone();
        let (parts, body) = request.into_parts();
        let mut body = Repeatable::new(body, self.buffer, cluster.clone());
        let mut tried: Vec<Arc<Endpoint>> = vec![self.upstream.endpoint.clone()];
        loop {
            let mut request = Request::new(body.send());
            *request.method_mut() = parts.method.clone();
            *request.uri_mut() = parts.uri.clone();
            *request.headers_mut() = parts.headers.clone();
            *request.extensions_mut() = parts.extensions.clone();
            if self.exchange.attempts > 1 && request.headers().contains_key(&names::ENVOY_ATTEMPT_TIMEOUT) {
                let left = self
                    .timeout
                    .map(|all| all.saturating_sub(self.exchange.start.elapsed().saturating_sub(self.exchange.held)));
                if let Some(expected) = self.per_try().or(left) {
                    let expected = HeaderValue::from(expected.as_millis().max(1) as u64);
                    request.headers_mut().insert(names::ENVOY_ATTEMPT_TIMEOUT, expected);
                }
            }
            if self.exchange.attempts > 1
                && let (Some(trace), Some(tracing)) = (&self.exchange.trace, &self.exchange.manager.tracing)
            {
                let span = trace.begin_try(tracing, self.exchange.attempts - 1, request.headers_mut());
                self.upstream.span = span;
            }
            let ended = self.one(&cluster, request).await;
            let gone = self.exchange.progress.as_ref().is_some_and(|progress| progress.broken().is_some());
            if gone || !body.can_be_sent_again() {
                return ended;
            }
            let (wanted, asked) = self.wishes(&ended);
            let high = self.action.high_priority;
            let pause = match self.retry.next(wanted, asked, &cluster, high, &mut worker::random) {
                Next::Done => return ended,
                Next::Exhausted => {
                    self.exchange.flags.set(ResponseFlag::UpstreamRetryLimitExceeded);
                    return ended;
                }
                Next::Overflow => {
                    self.exchange.flags.set(ResponseFlag::UpstreamOverflow);
                    return ended;
                }
                Next::After(pause) => pause,
            };
            self.discard(ended, &body);
            tokio::time::sleep(pause).await;
            match self.another(&cluster, &tried) {
                Ok(endpoint) => tried.push(endpoint),
                Err(failure) => return Ok(Err(failure)),
            }
        }
    }

    /// One try, within its own time.
    async fn one(&mut self, cluster: &Arc<Cluster>, request: Request<RequestBody>) -> Ended {
        let endpoint = self.upstream.endpoint.clone();
        let progress = self.exchange.progress.clone();
        let attempt = forward::attempt(
            cluster,
            &endpoint,
            Some(&self.exchange.connection),
            self.downstream,
            request,
            &self.head.authority,
            self.head.scheme,
        );
        let Some(limit) = self.per_try() else { return Ok(attempt.await) };
        match within(attempt, limit, self.exchange.start, progress.as_deref()).await {
            Some(result) => Ok(result),
            None => {
                cluster.stats.upstream_rq_per_try_timeout().inc();
                endpoint.stats.rq_timeout.fetch_add(1, Relaxed);
                Err(Expired::Try)
            }
        }
    }

    /// A try's bound that is not shorter than that of all tries has no effect.
    fn per_try(&self) -> Option<Duration> {
        self.retry.policy.first_timeout(self.timeout)
    }

    /// Whether the policy wants another try, and after which pause the response does.
    fn wishes(&self, ended: &Ended) -> (bool, Option<Duration>) {
        let policy = self.retry.policy;
        match ended {
            Ok(Ok((response, _))) => {
                let wanted = policy.wants_after_response(response.status().as_u16(), response.headers());
                let asked = || policy.asked_pause(response.headers(), SystemTime::now());
                (wanted, wanted.then(asked).flatten())
            }
            Ok(Err(failure)) => (reset(failure).is_some_and(|reset| policy.wants_after_reset(reset)), None),
            Err(_) => (policy.wants_after_reset(Reset::Other), None),
        }
    }

    /// Counts a try that does not stand. Its connection is kept if the response was complete.
    fn discard(&mut self, ended: Ended, body: &Repeatable) {
        let mut broken_off = false;
        match ended {
            Ok(Ok((response, lease))) => {
                self.upstream.ended(Report::Response(response.status().as_u16()));
                broken_off = !response.body().is_end_stream();
                if response.body().is_end_stream() && body.is_sent() {
                    lease.give_back();
                }
            }
            Ok(Err(failure)) => {
                if let Failure::Acquire(AcquireError::Connect(error)) = &failure {
                    self.exchange.upstream_failure = Some(error.to_string());
                }
                self.upstream.ended(Report::Failed);
            }
            Err(_) => self.upstream.ended(Report::TimedOut),
        }
        trace::finish_try(self.exchange, self.upstream, broken_off);
        // The pause is nobody's request.
        self.upstream.release();
    }

    /// Chooses the endpoint of the next try.
    fn another(&mut self, cluster: &Arc<Cluster>, tried: &[Arc<Endpoint>]) -> Result<Arc<Endpoint>, Failure> {
        let policy = self.retry.policy;
        let other_priorities = policy.other_priorities_after.is_some_and(|after| tried.len() as u32 >= after);
        let context = PickContext {
            original_destination: self.original,
            labels: self.labels,
            hash: self.hash,
            avoid: Avoid {
                hosts: if policy.other_hosts { tried } else { &[] },
                labels: &policy.omitted_hosts,
                priorities_of: if other_priorities { tried } else { &[] },
                reselections: policy.reselections,
            },
        };
        let endpoint = pick::choose(cluster, &context).map_err(|_| Failure::NoHost)?;
        let breaker = limits(cluster, self.action.high_priority);
        if breaker.requests.load(Relaxed) >= breaker.max_requests {
            cluster.stats.upstream_rq_pending_overflow().inc();
            return Err(Failure::Acquire(AcquireError::Overflow));
        }
        self.exchange.attempts += 1;
        *self.upstream = UpstreamRequest::new(cluster, &endpoint, self.action.high_priority);
        if let (Some(HostRewrite::Auto), Some(host)) = (self.action.host_rewrite.as_deref(), &endpoint.hostname)
            && let Ok(host) = HeaderValue::from_str(host)
        {
            self.head.authority = host;
        }
        Ok(endpoint)
    }
}

/// What a failure is to a retry policy; `None`: it would be the same with any endpoint.
fn reset(failure: &Failure) -> Option<Reset> {
    match failure {
        Failure::Acquire(AcquireError::Overflow) => Some(Reset::Overflow),
        Failure::Acquire(AcquireError::Connect(_)) => Some(Reset::Connect),
        Failure::Send(error) if super::failure::is_refused(error) => Some(Reset::Refused),
        Failure::Send(_) | Failure::BadResponse => Some(Reset::Other),
        Failure::NoHost | Failure::BadTarget => None,
    }
}

/// Awaits a try. Its clock starts when the request is complete, or with the try if it was before. `None`: it took too long.
async fn within<F: Future>(
    attempt: F,
    limit: Duration,
    start: Instant,
    progress: Option<&Progress>,
) -> Option<F::Output> {
    let begun = Instant::now();
    let mut attempt = std::pin::pin!(attempt);
    loop {
        let complete = match progress.map(Progress::done) {
            None => Some(begun),
            Some(done) => done.map(|done| begun.max(start + done)),
        };
        let due = complete.unwrap_or_else(Instant::now) + limit;
        tokio::select! {
            biased;
            output = &mut attempt => return Some(output),
            () = tokio::time::sleep_until(due.into()) => {}
        }
        if complete.is_some() {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::retry::RetryOn, stats::Registry, testing};

    fn policy() -> RetryPolicy {
        RetryPolicy {
            on: RetryOn::parse("5xx"),
            retries: 4,
            per_try_timeout: None,
            base: Duration::from_millis(100),
            longest: Duration::from_millis(300),
            status_codes: Vec::new(),
            response_headers: Vec::new(),
            request_headers: Vec::new(),
            reset_headers: Vec::new(),
            longest_reset: Duration::from_secs(300),
            other_hosts: false,
            omitted_hosts: Vec::new(),
            reselections: 1,
            other_priorities_after: None,
        }
    }

    fn retry(policy: &RetryPolicy) -> Retry<'_> {
        Retry { policy, left: policy.retries, pause: policy.base, held: None }
    }

    /// The largest draw shows each pause's bound.
    fn largest() -> u64 {
        // 100, 200 and 300 divide 600.
        599
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_tries_end() {
        let cluster = Arc::new(testing::cluster(&Registry::new(1), 0, "c", Vec::new()));
        let policy = policy();
        let mut retry = retry(&policy);
        let mut next = || retry.next(true, None, &cluster, false, &mut largest);
        let pause = |ms| Next::After(Duration::from_millis(ms));
        assert_eq!(
            [next(), next(), next(), next(), next()],
            [pause(99), pause(199), pause(299), pause(299), Next::Exhausted]
        );
        let stats = &cluster.stats;
        assert_eq!((stats.upstream_rq_retry().total(), stats.upstream_rq_retry_limit_exceeded().total()), (4, 1));
        assert_eq!(cluster.limits.retries.load(Relaxed), 0, "the last is no longer under way");
    }

    #[test]
    fn a_response_may_ask_for_its_own_pause() {
        let cluster = Arc::new(testing::cluster(&Registry::new(1), 0, "c", Vec::new()));
        let policy = policy();
        let mut retry = retry(&policy);
        let next = retry.next(true, Some(Duration::from_secs(2)), &cluster, false, &mut largest);
        assert_eq!(next, Next::After(Duration::from_millis(2599)));
        assert_eq!(cluster.stats.upstream_rq_retry_backoff_ratelimited().total(), 1);
        assert_eq!(retry.next(false, None, &cluster, false, &mut largest), Next::Done);
        assert_eq!(cluster.stats.upstream_rq_retry_success().total(), 1);
    }

    #[test]
    fn the_circuit_breaker_and_the_budget_bound_retries() {
        for (budget, requests, most) in [
            (None, 0, 3),
            (Some((20.0, 3)), 0, 3),
            (Some((20.0, 3)), 100, 20),
            (Some((50.0, 1)), 4, 2),
            (Some((0.0, 0)), 100, 0),
        ] {
            let mut cluster = testing::cluster(&Registry::new(1), 0, "c", Vec::new());
            cluster.limits.retry_budget =
                budget.map(|(percent, least)| crate::model::cluster::RetryBudget { percent, least });
            cluster.limits.requests.store(requests, Relaxed);
            let cluster = Arc::new(cluster);
            let policy = policy();
            let mut retries: Vec<_> = (0..most).map(|_| retry(&policy)).collect();
            for retry in &mut retries {
                assert!(matches!(retry.next(true, None, &cluster, false, &mut largest), Next::After(_)), "{budget:?}");
            }
            let mut one_more = retry(&policy);
            assert_eq!(one_more.next(true, None, &cluster, false, &mut largest), Next::Overflow, "{budget:?}");
            assert_eq!(cluster.stats.upstream_rq_retry_overflow().total(), 1);
            drop(retries);
            assert_eq!(cluster.limits.retries.load(Relaxed), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_is_timed_from_the_end_of_the_request() {
        let start = Instant::now();
        let limit = Duration::from_millis(50);
        assert_eq!(within(std::future::pending::<()>(), limit, start, None).await, None);
        assert_eq!(within(async { 7 }, limit, start, None).await, Some(7));
    }
}
