//! An old projector beside a new one, as in a rolling upgrade: what the new one has had is not gone on with by the old one,
//! not even when the new one is gone. Both are this build; one says that its fold is another.

use crate::field::{Field, PROJECTORS};
use crate::run::{case, seconds, without};
use crate::support::eventually;

/// The old ones run; one of them is replaced by a new one, which then dies.
async fn upgrade(field: &Field) {
    let [new, _] = PROJECTORS;
    field.terminate(new);
    field.becomes(new, 3);
    field.start_anew(new, &[]);
    eventually("the new one owns partitions", async || {
        (upgraded(field).await > 0).then_some(())
    })
    .await;
    seconds(1.0).await;
    // Nobody has said goodbye, so the group gives its partitions to the old one when its session is over.
    field.kill(new);
}

async fn upgraded(field: &Field) -> i64 {
    let sql = "SELECT count(*) FROM positions WHERE fold_version = 3";
    field.deployment.db().await.count(sql, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_projector_beside_a_new_one() {
    case("versions", async |field, _| {
        upgrade(field).await;
        let [new, old] = PROJECTORS;
        let said = field.ends(old).await;
        let why = "was written by a newer tidelog (fold 3; this is 2): upgrade this one";
        field.note(!said.contains(why), || {
            format!("the old projector does not say why it ended: {said}")
        });
        // The upgrade goes on.
        field.becomes(old, 3);
        for who in [new, old] {
            field.start_anew(who, &[]);
        }
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_folds_version_an_old_projector_goes_on_where_a_new_one_was() {
    without("fold-version", &["a position moved back"], async |field, _| {
        upgrade(field).await;
        eventually("the old one has taken over", async || {
            (upgraded(field).await == 0).then_some(())
        })
        .await;
        0
    })
    .await;
}
