//! Acts by a page's form: only from our own pages.
//!
//! A page of another site can make a visitor's browser post a form here. Three things stand against it: the cookie is
//! `SameSite=Strict`, so it does not come along; the browser says where the form stood (`Sec-Fetch-Site`, `Origin`), and it
//! must be here; and the form has a secret that other sites cannot read.

use super::{Access, FormSecret, Grant, Visitor};
use crate::model::Right;
use crate::web::error::PageError;
use axum::Form;
use axum::extract::{FromRef, FromRequest, FromRequestParts, Request};
use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, StatusCode};
use constant_time_eq::constant_time_eq;
use serde::Deserialize;
use url::{Origin, Url};

/// A form of a login that may act.
#[derive(Debug)]
pub(in crate::web) struct ActByForm(pub(in crate::web) Grant);

/// A form of any login.
#[derive(Debug)]
pub(in crate::web) struct AnyForm;

#[derive(Debug, Deserialize)]
struct Fields {
    /// Absent in a form that is not ours.
    #[serde(default)]
    secret: String,
}

impl<S: Send + Sync> FromRequest<S> for ActByForm
where
    Access: FromRef<S>,
{
    type Rejection = PageError;

    async fn from_request(request: Request, state: &S) -> Result<Self, PageError> {
        let grant = checked_form(request, &Access::from_ref(state)).await?;
        if grant.may < Right::Act {
            return Err(PageError::new(
                StatusCode::FORBIDDEN,
                format!("The token `{}` may only read.", grant.token),
            ));
        }
        Ok(ActByForm(grant))
    }
}

impl<S: Send + Sync> FromRequest<S> for AnyForm
where
    Access: FromRef<S>,
{
    type Rejection = PageError;

    async fn from_request(request: Request, state: &S) -> Result<Self, PageError> {
        checked_form(request, &Access::from_ref(state)).await?;
        Ok(AnyForm)
    }
}

async fn checked_form(request: Request, access: &Access) -> Result<Grant, PageError> {
    refuse_other_sites(request.headers(), &access.settings.origin)?;
    let (mut parts, body) = request.into_parts();
    let Ok(visitor) = Visitor::from_request_parts(&mut parts, &()).await;
    let Visitor::Login(grant, secret) = visitor else {
        return Err(PageError::new(
            StatusCode::UNAUTHORIZED,
            "You are not logged in, or no longer.",
        ));
    };
    let Form(fields) = Form::<Fields>::from_request(Request::from_parts(parts, body), &())
        .await
        .map_err(|rejection| PageError::new(rejection.status(), "The form is not understood."))?;
    if !is_the_secret(&fields.secret, &secret) {
        return Err(PageError::new(
            StatusCode::FORBIDDEN,
            "The form is out of date: go back, load the page again, and try once more.",
        ));
    }
    Ok(grant)
}

fn is_the_secret(given: &str, secret: &FormSecret) -> bool {
    constant_time_eq(given.as_bytes(), secret.as_str().as_bytes())
}

/// Refuses a form that did not stand on a page of this master. Every browser of these years sends one of the two headers.
pub(super) fn refuse_other_sites(headers: &HeaderMap, ours: &Origin) -> Result<(), PageError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let is_ours = match (text("sec-fetch-site"), text(ORIGIN.as_str())) {
        (Some(site), _) => site == "same-origin",
        (None, Some(origin)) => is_same(origin, ours, text(HOST.as_str())),
        (None, None) => false,
    };
    match is_ours {
        true => Ok(()),
        false => Err(PageError::new(
            StatusCode::FORBIDDEN,
            "This form was sent from another site, so nothing was done.",
        )),
    }
}

/// Whether an `Origin` is the configured one, or the host that was asked; by plain HTTP only where that is the rule.
fn is_same(origin: &str, ours: &Origin, host: Option<&str>) -> bool {
    let Ok(origin) = Url::parse(origin) else {
        return false;
    };
    let is_https = |of: &Origin| matches!(of, Origin::Tuple(scheme, ..) if scheme == "https");
    if is_https(ours) && !is_https(&origin.origin()) {
        return false;
    }
    let asked = host.and_then(|host| Url::parse(&format!("{}://{host}", origin.scheme())).ok());
    origin.origin() == *ours || asked.is_some_and(|asked| asked.origin() == origin.origin())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_of_another_site_is_refused() {
        let ours = Url::parse("https://ci.example.org/").unwrap().origin();
        let check = |pairs: &[(&'static str, &'static str)]| {
            let headers = pairs
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect();
            refuse_other_sites(&headers, &ours).is_ok()
        };
        assert!(check(&[("sec-fetch-site", "same-origin")]));
        assert!(check(&[("origin", "https://ci.example.org")]));
        assert!(check(&[
            ("origin", "https://other.name"),
            ("host", "other.name")
        ]));
        assert!(!check(&[]));
        for site in ["cross-site", "same-site", "none", ""] {
            assert!(!check(&[
                ("sec-fetch-site", site),
                ("origin", "https://ci.example.org")
            ]));
        }
        for origin in [
            "null",
            "https://evil.example",
            "http://ci.example.org",
            "https://ci.example.org:444",
        ] {
            assert!(
                !check(&[("origin", origin), ("host", "ci.example.org")]),
                "{origin}"
            );
        }
    }
}
