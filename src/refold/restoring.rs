//! A shadow that begins with a snapshot, and what a rebuild does where the live tables stand before it: a database that was lost, or
//! a log that was cut off before it was applied. There is nothing to compare then; tables, shared rows and positions go in as a whole.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tidelog_projector::shadow::{Offsets, Shadow, ShadowState};
use tokio::sync::watch;
use tokio_postgres::Client;

use super::Ground;
use super::rebuild::{Rebuilt, STOPPED};
use crate::progress::during;
use crate::snapshot::{Found, loading};

/// A partition whose live tables stood before the snapshot.
#[derive(Debug, Serialize)]
pub(super) struct Behind {
    partition: i32,
    /// Where they stood.
    live_offset: i64,
    /// From where they are gone on with.
    restored_offset: i64,
}

/// Loads a snapshot into a shadow that is kept. Cut off, it begins anew.
pub(super) async fn restore(
    ground: &Ground,
    shadow: &Shadow,
    dir: &Path,
    begun: bool,
    client: &Client,
    stop: &watch::Receiver<bool>,
) -> Result<Found> {
    let found = checked(shadow, dir, stop).await?;
    let mut made = shadow.connect().await?;
    if begun {
        shadow.discard(&mut made).await?;
    }
    shadow.make_as(&mut made, ShadowState::Restoring).await?;
    loading::load(&found, shadow, ground.jobs(), stop).await?;
    shadow.note_state(client, ShadowState::Loading).await?;
    Ok(found)
}

/// The snapshot to begin with, every file of which is what was written.
pub(super) async fn checked(shadow: &Shadow, dir: &Path, stop: &watch::Receiver<bool>) -> Result<Found> {
    let found = loading::find(dir, shadow).await?;
    loading::check_files(&found, stop).await?;
    Ok(found)
}

/// Loads a snapshot into tables that are only compared.
pub(super) async fn load_scratch(
    ground: &Ground,
    shadow: &Shadow,
    dir: &Path,
    client: &Client,
    stop: &watch::Receiver<bool>,
) -> Result<()> {
    let found = checked(shadow, dir, stop).await?;
    loading::load(&found, shadow, ground.jobs(), stop).await?;
    if let Some((partition, at)) = shadow.behind(client).await?.first_key_value() {
        bail!(
            "the tables stand at offset {at} of partition {partition}, before the snapshot {}: they were lost or are of an older \
             backup, so there is nothing to compare. `tidelog rebuild --domain {} --snapshot {}` brings them back",
            found.dir.display(),
            shadow.domains()[0].name,
            dir.display()
        );
    }
    Ok(())
}

/// Puts the shadow in the place of live tables that stand before it, positions too.
pub(super) async fn put_back(
    shadow: &Shadow,
    client: &mut Client,
    behind: &Offsets,
    accept: bool,
    stop: &watch::Receiver<bool>,
    mut rebuilt: Rebuilt,
) -> Result<Rebuilt> {
    let restored = shadow.positions().await?;
    let each = behind.iter().map(|(partition, at)| Behind {
        partition: *partition,
        live_offset: *at,
        restored_offset: restored.get(partition).copied().unwrap_or(0),
    });
    rebuilt.behind = each.collect();
    if !accept && !shadow.nothing_is_live(client).await? {
        rebuilt.next = "the live tables hold rows, and stand before what was restored: they would be replaced as a whole, without being \
                        compared. Run it again with --accept-differences to do so, or with --discard"
            .into();
        return Ok(rebuilt);
    }
    shadow.note_positions(client).await?;
    let what = format!("swapping {}", shadow.topic());
    let swapping = async { shadow.swap(client, &[], stop).await?.context(STOPPED) };
    let swapped = during(&what, 0, || 0, swapping).await?;
    rebuilt.done = "restored";
    rebuilt.exchanged = swapped.exchanged;
    rebuilt.stood_still_ms = Some(swapped.stood_still.as_millis() as u64);
    rebuilt.views = swapped.views;
    if shadow.nothing_was_live(client).await? {
        // There is no way back to nothing.
        shadow.discard(client).await?;
        rebuilt.next = String::new();
    } else {
        rebuilt.next = format!(
            "what was live before is kept to be looked at, and has no way back: `tidelog rebuild --domain {} --discard` drops it",
            shadow.domains()[0].name
        );
    }
    Ok(rebuilt)
}
