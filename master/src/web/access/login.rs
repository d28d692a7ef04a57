//! Logging in with a browser, by a token; and out.

use super::forgery::refuse_other_sites;
use super::secret::random;
use super::{Access, AnyForm, Grant, Visitor, digest};
use crate::web::asker::Asker;
use crate::web::error::{ApiError, PageError};
use crate::web::pages::{Page, render};
use axum::Form;
use axum::extract::{Query, State};
use axum::http::header::SET_COOKIE;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Redirect, Response};
use jiff::SignedDuration;
use minijinja::context;
use serde::Deserialize;
use url::Url;

/// A login ends after this. Long enough to be rare, short enough that a forgotten browser does not stay open for ever.
const LIFETIME: SignedDuration = SignedDuration::from_hours(7 * 24);

#[derive(Debug, Deserialize)]
pub(in crate::web) struct Next {
    /// The page to come back to.
    next: Option<String>,
}

/// `GET /login`.
pub(in crate::web) async fn login_page(
    page: Page,
    visitor: Visitor,
    Query(query): Query<Next>,
) -> Result<Response, PageError> {
    let next = own_page(query.next.as_deref());
    match visitor {
        Visitor::Login(..) => Ok(Redirect::to(&next).into_response()),
        Visitor::Stranger | Visitor::Token(_) => form(&page, &next, StatusCode::OK),
    }
}

fn form(page: &Page, next: &str, status: StatusCode) -> Result<Response, PageError> {
    let wrong = status != StatusCode::OK;
    let html = render("login.html", context! { page, next, wrong })?;
    Ok((status, html).into_response())
}

#[derive(Deserialize)]
pub(in crate::web) struct Credentials {
    token: String,
    next: Option<String>,
}

/// `POST /login`: a good token gets a cookie.
pub(in crate::web) async fn log_in(
    State(access): State<Access>,
    page: Page,
    asker: Asker,
    headers: HeaderMap,
    Form(given): Form<Credentials>,
) -> Result<Response, PageError> {
    refuse_other_sites(&headers, &access.settings.origin)?;
    let next = own_page(given.next.as_deref());
    let allowed = access.settings.rates.try_secret(asker);
    allowed.map_err(ApiError::too_often)?;
    let Some(grant) = access.by_token(given.token.trim()).await? else {
        return form(&page, &next, StatusCode::UNAUTHORIZED);
    };
    let cookie = access.new_login(&grant).await?;
    tracing::info!(token = grant.token, "logged in");
    Ok(([(SET_COOKIE, cookie)], Redirect::to(&next)).into_response())
}

/// `POST /logout`.
pub(in crate::web) async fn log_out(
    State(access): State<Access>,
    headers: HeaderMap,
    _: AnyForm,
) -> Result<Response, PageError> {
    if let Some(cookie) = access.login_cookie(&headers) {
        access.store.remove_login(&digest(cookie)).await?;
    }
    let gone = access.cookie("", 0);
    Ok(([(SET_COOKIE, gone)], Redirect::to("/")).into_response())
}

impl Access {
    async fn new_login(&self, grant: &Grant) -> Result<String, PageError> {
        let secret = random();
        let now = self.clock.now();
        self.store
            .add_login(&digest(&secret), &grant.token, now, now + LIFETIME)
            .await?;
        Ok(self.cookie(&secret, LIFETIME.as_secs()))
    }

    fn cookie(&self, value: &str, seconds: i64) -> String {
        let secure = match self.settings.https {
            true => "; Secure",
            false => "",
        };
        format!(
            "{}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}",
            self.cookie_name()
        )
    }
}

/// Answers a stranger who asks for a page that not everybody may read.
pub(super) fn lead_to_login(uri: &Uri, headers: &HeaderMap) -> Response {
    let asked = uri.path_and_query().map_or("/", |asked| asked.as_str());
    let came_by_link = headers
        .get("sec-fetch-site")
        .is_some_and(|site| site == "cross-site");
    if came_by_link {
        // A link on another site, such as a status on GitHub, brings no `SameSite=Strict` cookie along, also where there
        // is one. Asked for once more from here, the cookie comes with it.
        return render("again.html", context! { next => own_page(Some(asked)) })
            .map(IntoResponse::into_response)
            .unwrap_or_else(IntoResponse::into_response);
    }
    Redirect::to(&login_link(asked)).into_response()
}

/// The login page's address, with the page to come back to.
pub(in crate::web) fn login_link(next: &str) -> String {
    let query: String = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("next", next)
        .finish();
    format!("/login?{query}")
}

/// The page to come back to: a path of this master, whatever was asked for.
fn own_page(next: Option<&str>) -> String {
    const FRONT: &str = "/";
    let here = Url::parse("http://here.invalid/");
    let resolved = here.and_then(|here| Ok((here.join(next.unwrap_or(FRONT))?, here)));
    match resolved {
        Ok((there, here)) if there.origin() == here.origin() && !there.path().starts_with("//") => {
            there[url::Position::BeforePath..url::Position::AfterQuery].to_owned()
        }
        Ok(_) | Err(_) => FRONT.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_never_leads_elsewhere() {
        for (next, expected) in [
            ("/jobs/3?x=1#log", "/jobs/3?x=1"),
            ("builds", "/builds"),
            ("https://evil.example/", "/"),
            ("//evil.example/", "/"),
            ("/\\evil.example/", "/"),
            ("\\\\evil.example", "/"),
            ("/.//evil.example", "/"),
            ("\t//evil.example", "/"),
            ("javascript:alert(1)", "/"),
            ("http://here.invalid:81/", "/"),
            ("/a\r\nSet-Cookie: x=y", "/aSet-Cookie:%20x=y"),
        ] {
            assert_eq!(own_page(Some(next)), expected, "{next:?}");
        }
        assert_eq!(own_page(None), "/");
    }
}
