//! What this host knows of the vault as a whole: which one its working half belongs to, and which segments of it were found
//! damaged. Both decide what the next run may build upon.

use dynavault_model::SegmentId;
use rusqlite::{OptionalExtension, params};

use crate::{Catalog, CatalogError};

/// A vault as a host remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownVault {
    /// Where it was.
    pub address: String,
    /// Its id; unknown to a host that may only write.
    pub id: Option<String>,
}

impl KnownVault {
    /// Whether `now` is certainly or probably another vault. Ids decide where both are known: a vault may be moved, and another
    /// one may be put in its place. Without them the address is all there is.
    pub fn differs_from(&self, now: &Self) -> bool {
        match (&self.id, &now.id) {
            (Some(before), Some(id)) => before != id,
            _ => self.address != now.address,
        }
    }
}

impl Catalog {
    /// The vault that the working half of an environment belongs to, if that was noted.
    pub async fn known_vault(&self, environment: &str) -> Result<Option<KnownVault>, CatalogError> {
        let environment = environment.to_string();
        self.transact("read which vault is used", move |tx| {
            tx.query_row("SELECT address, id FROM vault WHERE environment = ?1", [&environment], |row| {
                Ok(KnownVault { address: row.get(0)?, id: row.get(1)? })
            })
            .optional()
        })
        .await
    }

    /// Notes which vault the working half of an environment belongs to. An id that is known is kept where the new one is not.
    pub async fn remember_vault(&self, environment: &str, vault: KnownVault) -> Result<(), CatalogError> {
        let environment = environment.to_string();
        self.transact("note which vault is used", move |tx| {
            tx.execute(
                "INSERT INTO vault (environment, address, id) VALUES (?1, ?2, ?3)
                 ON CONFLICT (environment) DO UPDATE SET address = excluded.address, id = coalesce(excluded.id, id)",
                params![environment, vault.address, vault.id],
            )?;
            Ok(())
        })
        .await
    }

    /// Notes segments that a check found damaged. A check that read `everything` replaces what earlier ones found.
    pub async fn note_damage(
        &self,
        environment: &str,
        segments: Vec<(String, SegmentId)>,
        everything: bool,
    ) -> Result<(), CatalogError> {
        let environment = environment.to_string();
        self.transact("note damaged segments", move |tx| {
            if everything {
                tx.execute("DELETE FROM damaged_segment WHERE environment = ?1", [&environment])?;
            }
            let mut insert = tx.prepare_cached(
                "INSERT OR IGNORE INTO damaged_segment (environment, table_name, segment) VALUES (?1, ?2, ?3)",
            )?;
            for (table, segment) in &segments {
                insert.execute(params![environment, table, segment.to_string()])?;
            }
            Ok(())
        })
        .await
    }

    /// Segments of an environment that a check found damaged.
    pub async fn damaged_segments(&self, environment: &str) -> Result<Vec<SegmentId>, CatalogError> {
        let environment = environment.to_string();
        self.transact("list damaged segments", move |tx| {
            let mut statement = tx.prepare("SELECT segment FROM damaged_segment WHERE environment = ?1")?;
            let texts = statement.query_map([&environment], |row| row.get::<_, String>(0))?;
            texts.map(|text| Ok(text?.parse().ok())).filter_map(Result::transpose).collect()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault(address: &str, id: Option<&str>) -> KnownVault {
        KnownVault { address: address.into(), id: id.map(str::to_string) }
    }

    #[test]
    fn ids_tell_vaults_apart_and_addresses_where_there_are_none() {
        assert!(!vault("a", Some("1")).differs_from(&vault("b", Some("1"))), "a vault was moved");
        assert!(vault("a", Some("1")).differs_from(&vault("a", Some("2"))), "a vault was exchanged");
        assert!(!vault("a", Some("1")).differs_from(&vault("a", None)));
        assert!(vault("a", None).differs_from(&vault("b", None)));
    }

    #[tokio::test]
    async fn a_vault_is_remembered_with_the_id_it_once_told_until_the_environment_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&folder.path().join("catalog.db")).unwrap();
        assert_eq!(catalog.known_vault("e").await.unwrap(), None);
        catalog.remember_vault("e", vault("a", Some("1"))).await.unwrap();
        catalog.remember_vault("e", vault("a", None)).await.unwrap();
        assert_eq!(catalog.known_vault("e").await.unwrap(), Some(vault("a", Some("1"))));
        catalog.forget_environment("e").await.unwrap();
        assert_eq!(catalog.known_vault("e").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_whole_check_replaces_the_damage_that_is_known_and_a_sample_adds_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&folder.path().join("catalog.db")).unwrap();
        let ids: [SegmentId; 2] =
            ["01ARZ3NDEKTSV4RRFFQ69G5FAV", "01ARZ3NDEKTSV4RRFFQ69G5FAW"].map(|id| id.parse().unwrap());
        let table = || "account".to_string();
        catalog.note_damage("e", vec![(table(), ids[0])], true).await.unwrap();
        catalog.note_damage("e", vec![(table(), ids[1]), (table(), ids[0])], false).await.unwrap();
        assert_eq!(catalog.damaged_segments("e").await.unwrap(), ids);
        catalog.note_damage("e", vec![(table(), ids[1])], true).await.unwrap();
        assert_eq!(catalog.damaged_segments("e").await.unwrap(), [ids[1]]);
        assert_eq!(catalog.damaged_segments("other").await.unwrap(), []);
    }
}
