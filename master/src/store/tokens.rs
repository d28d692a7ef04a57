//! Rows of `tokens` and `logins`: who may do what. Only digests of secrets come here.
//!
//! They are looked up by digest. What the index compares is not what a guesser sends but its SHA-256, so the time it
//! takes tells nothing that brings a guess nearer.

use super::{Store, StoreError, millis, optional_time, timestamp};
use crate::model::Right;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

/// Logins that a token keeps; a further one ends the oldest.
const MOST_LOGINS: i64 = 20;

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    pub name: String,
    pub may: Right,
    pub created_at: Timestamp,
    pub last_used_at: Option<Timestamp>,
}

fn from_row(row: &SqliteRow) -> Result<TokenRow, StoreError> {
    let may: String = row.try_get("may")?;
    Ok(TokenRow {
        name: row.try_get("name")?,
        may: Right::from_name(&may).ok_or(StoreError::Unknown {
            what: "a right",
            value: may,
        })?,
        created_at: timestamp(row.try_get("created_at")?),
        last_used_at: optional_time(row.try_get("last_used_at")?),
    })
}

/// Whether the name was free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    New,
    NameTaken,
}

impl Store {
    pub async fn add_token(
        &self,
        name: &str,
        digest: &str,
        may: Right,
        now: Timestamp,
    ) -> Result<Added, StoreError> {
        let done = sqlx::query(
            "INSERT INTO tokens (name, digest, may, created_at) VALUES (?, ?, ?, ?) \
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(name)
        .bind(digest)
        .bind(may.as_str())
        .bind(millis(now))
        .execute(&self.writer)
        .await?;
        Ok(match done.rows_affected() {
            0 => Added::NameTaken,
            _ => Added::New,
        })
    }

    /// Makes this the token of that name. Logins by another secret of the name end.
    pub async fn replace_token(
        &self,
        name: &str,
        digest: &str,
        may: Right,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        sqlx::query("DELETE FROM tokens WHERE name = ? AND digest <> ?")
            .bind(name)
            .bind(digest)
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "INSERT INTO tokens (name, digest, may, created_at) VALUES (?, ?, ?, ?) \
             ON CONFLICT (name) DO UPDATE SET may = excluded.may",
        )
        .bind(name)
        .bind(digest)
        .bind(may.as_str())
        .bind(millis(now))
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// All tokens by name.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        let rows =
            sqlx::query("SELECT name, may, created_at, last_used_at FROM tokens ORDER BY name")
                .fetch_all(&self.reader)
                .await?;
        rows.iter().map(from_row).collect()
    }

    /// Revokes it and ends its logins; false if there is none of that name.
    pub async fn remove_token(&self, name: &str) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM tokens WHERE name = ?")
            .bind(name)
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    pub async fn token_of(&self, digest: &str) -> Result<Option<TokenRow>, StoreError> {
        let row =
            sqlx::query("SELECT name, may, created_at, last_used_at FROM tokens WHERE digest = ?")
                .bind(digest)
                .fetch_optional(&self.reader)
                .await?;
        row.as_ref().map(from_row).transpose()
    }

    pub async fn token_was_used(&self, name: &str, now: Timestamp) -> Result<(), StoreError> {
        sqlx::query("UPDATE tokens SET last_used_at = ? WHERE name = ?")
            .bind(millis(now))
            .bind(name)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Adds a login of a token; those that have ended, or are too many, go.
    pub async fn add_login(
        &self,
        digest: &str,
        token: &str,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        sqlx::query("DELETE FROM logins WHERE expires_at <= ?")
            .bind(millis(now))
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "DELETE FROM logins WHERE token = ? AND digest NOT IN \
             (SELECT digest FROM logins WHERE token = ? ORDER BY created_at DESC LIMIT ?)",
        )
        .bind(token)
        .bind(token)
        .bind(MOST_LOGINS - 1)
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "INSERT INTO logins (digest, token, created_at, expires_at) VALUES (?, ?, ?, ?)",
        )
        .bind(digest)
        .bind(token)
        .bind(millis(now))
        .bind(millis(expires_at))
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// The token behind a login that has not ended.
    pub async fn token_of_login(
        &self,
        digest: &str,
        now: Timestamp,
    ) -> Result<Option<TokenRow>, StoreError> {
        let row = sqlx::query(
            "SELECT name, may, tokens.created_at, last_used_at FROM logins \
             JOIN tokens ON tokens.name = logins.token WHERE logins.digest = ? AND expires_at > ?",
        )
        .bind(digest)
        .bind(millis(now))
        .fetch_optional(&self.reader)
        .await?;
        row.as_ref().map(from_row).transpose()
    }

    pub async fn remove_login(&self, digest: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM logins WHERE digest = ?")
            .bind(digest)
            .execute(&self.writer)
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::ToSpan;

    #[tokio::test]
    async fn a_token_serves_until_it_is_revoked_and_its_logins_end_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db")).await.unwrap();
        let now = Timestamp::now();
        let later = now + 1.hour();
        let added = store.add_token("ci", "d1", Right::Act, now).await.unwrap();
        assert_eq!(added, Added::New);
        let again = store.add_token("ci", "d2", Right::Read, now).await.unwrap();
        assert_eq!(again, Added::NameTaken);
        assert_eq!(store.token_of("d2").await.unwrap(), None);
        assert_eq!(store.token_of("d1").await.unwrap().unwrap().may, Right::Act);
        store.token_was_used("ci", now).await.unwrap();
        let row = store.tokens().await.unwrap().remove(0);
        assert_eq!(row.last_used_at.map(millis), Some(millis(now)));

        store.add_login("l1", "ci", now, later).await.unwrap();
        let token = store.token_of_login("l1", now).await.unwrap().unwrap();
        assert_eq!(token.name, "ci");
        assert_eq!(store.token_of_login("l1", later).await.unwrap(), None);
        assert!(store.remove_token("ci").await.unwrap());
        assert!(!store.remove_token("ci").await.unwrap());
        assert_eq!(store.token_of_login("l1", now).await.unwrap(), None);
    }

    #[tokio::test]
    async fn logins_are_bounded_and_the_oldest_ends_first() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db")).await.unwrap();
        let start = Timestamp::now();
        store.add_token("ci", "d", Right::Act, start).await.unwrap();
        for number in 0..=MOST_LOGINS {
            let now = start + number.seconds();
            let digest = format!("l{number}");
            let expires = now + 1.hour();
            store.add_login(&digest, "ci", now, expires).await.unwrap();
        }
        assert_eq!(store.token_of_login("l0", start).await.unwrap(), None);
        assert!(store.token_of_login("l1", start).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn another_secret_under_the_same_name_ends_the_logins_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db")).await.unwrap();
        let now = Timestamp::now();
        for digest in ["d1", "d1", "d2"] {
            let replaced = store.replace_token("local", digest, Right::Admin, now);
            replaced.await.unwrap();
            let login = format!("login by {digest}");
            store.remove_login(&login).await.unwrap();
            let expires = now + 1.hour();
            store
                .add_login(&login, "local", now, expires)
                .await
                .unwrap();
        }
        assert_eq!(store.token_of("d1").await.unwrap(), None);
        let ended = store.token_of_login("login by d1", now).await.unwrap();
        assert_eq!(ended, None);
        assert!(
            store
                .token_of_login("login by d2", now)
                .await
                .unwrap()
                .is_some()
        );
    }
}
