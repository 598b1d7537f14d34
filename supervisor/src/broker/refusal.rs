//! What the container is told when a request is not forwarded: a status, and a JSON body in the shape that a client of that service shows, naming the
//! provider and the remedy.

use super::body::Relayed;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use serde_json::json;
use terok_policy::judge::Reason;
use terok_policy::provider::{ErrorShape, Errors, Provider};

/// Why a request is not forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// For the audit log.
    pub(super) reason: Reason,
    /// For a person: what, and what to do. Never a secret.
    pub(super) message: String,
}

impl Refusal {
    /// One with this status.
    pub(super) fn new(status: StatusCode, reason: Reason, message: impl Into<String>) -> Self {
        Refusal { status, reason, message: message.into() }
    }

    /// The answer, in the shape of the provider where one is known.
    pub(super) fn answer(&self, provider: Option<&Provider>) -> Response<Relayed> {
        let errors = provider.map(|provider| &provider.errors);
        let message = match provider {
            Some(provider) => format!("terok: {}: {}", provider.name, self.message),
            None => format!("terok: {}", self.message),
        };
        let text =
            body(errors.map(|errors| errors.shape).unwrap_or_default(), self.status, &message).to_string();
        let mut response = Response::new(Relayed::said(text));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, challenge(errors));
        }
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// RFC 9110 §11.6.1: a 401 always has one.
fn challenge(errors: Option<&Errors>) -> HeaderValue {
    let own = errors
        .and_then(|errors| errors.challenge.as_deref())
        .and_then(|text| HeaderValue::try_from(text).ok());
    own.unwrap_or(HeaderValue::from_static("Bearer realm=\"terok\""))
}

fn body(shape: ErrorShape, status: StatusCode, message: &str) -> serde_json::Value {
    // The words that the services themselves use for these: their clients decide by them.
    let kind = match status {
        StatusCode::BAD_REQUEST => "invalid_request_error",
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        _ => "api_error",
    };
    match shape {
        ErrorShape::OpenAi => {
            json!({ "error": { "message": message, "type": kind, "param": null, "code": status.as_u16().to_string() } })
        }
        ErrorShape::Anthropic => json!({ "type": "error", "error": { "type": kind, "message": message } }),
        ErrorShape::Message => json!({ "message": message, "status": status.as_u16().to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shape_holds_the_message_where_its_clients_look_for_it() {
        let at = |shape, pointer: &str| {
            body(shape, StatusCode::SERVICE_UNAVAILABLE, "locked").pointer(pointer).cloned().unwrap()
        };
        assert_eq!(at(ErrorShape::OpenAi, "/error/message"), "locked");
        assert_eq!(at(ErrorShape::Anthropic, "/error/message"), "locked");
        assert_eq!(at(ErrorShape::Anthropic, "/error/type"), "api_error");
        assert_eq!(at(ErrorShape::Message, "/message"), "locked");
    }
}
