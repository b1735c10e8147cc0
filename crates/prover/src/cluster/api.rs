//! Requests to the API server that cannot hang.

use std::time::Duration;

use tokio::time::timeout;

use super::error::ProveError;

/// Everything asked for here takes milliseconds, and under heavy load seconds.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits for a request, but not for ever.
pub(super) async fn call<T>(
    operation: &'static str,
    object: impl Into<String>,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ProveError> {
    let object = object.into();
    match timeout(LIMIT, request).await {
        Ok(answer) => answer.map_err(ProveError::api(operation, object)),
        Err(_) => Err(ProveError::Timeout {
            condition: format!("the API server to {operation} {object}"),
            waited_s: LIMIT.as_secs(),
            last_status: "it did not answer".to_owned(),
        }),
    }
}

/// `None` if there is no such thing.
pub(super) fn found<T>(answer: Result<T, ProveError>) -> Result<Option<T>, ProveError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.code() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}
