//! Generations of weights, and the pointers to those that serve, train, judge and are the reference.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sql::{Connection, Row, query};
use utoipa::ToSchema;

use super::database::{Database, WriteTransaction};
use super::lease::ACTOR;
use super::record::stored_words;
use super::stage::require_open;
use super::{GenerationId, LogError, Result, StageId, UnixMillis, columns, events, now};

/// The weights of a finished stage, before the gates have run.
#[derive(Debug, Clone, PartialEq)]
pub struct NewGeneration {
    /// The digest of the generation's directory.
    pub id: GenerationId,
    /// The generation from which training started.
    pub parent: GenerationId,
    /// The reference policy of the stage's loss.
    pub reference: GenerationId,
    /// The stage that trained it; none for imported weights.
    pub stage: Option<StageId>,
    pub manifest: Value,
}

/// One generation.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = GenerationBody)]
pub struct Generation {
    /// The digest of its manifest.
    #[schema(value_type = String)]
    pub id: GenerationId,
    /// The generation from which its training started.
    #[schema(value_type = String)]
    pub parent: GenerationId,
    /// The reference policy of its training.
    #[schema(value_type = String)]
    pub reference: GenerationId,
    /// The number of the stage that made it; null for an imported one.
    #[schema(value_type = Option<i64>)]
    pub stage: Option<StageId>,
    /// `candidate`, `promoted`, `rejected`, `rolled_back` or `failed`.
    #[schema(value_type = String)]
    pub state: GenerationState,
    /// Every gate's number, bound and verdict; null until they have been measured.
    #[schema(value_type = Option<Vec<Object>>)]
    pub gates: Value,
    /// Its lineage, and its files.
    #[schema(value_type = Object)]
    pub manifest: Value,
    /// Time in milliseconds since 1970.
    #[schema(value_type = i64)]
    pub created_at: UnixMillis,
}

/// The state of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GenerationState {
    Candidate,
    /// It has been the policy and has not been rolled back.
    Promoted,
    /// A gate rejected it, or its stage was abandoned.
    Rejected,
    /// It was the policy, until the policy went back to an earlier generation.
    RolledBack,
    /// Its files cannot be used.
    Failed,
}

stored_words!(
    GenerationState, "generation state",
    Candidate => "candidate", Promoted => "promoted", Rejected => "rejected", RolledBack => "rolled_back", Failed => "failed",
);

/// A role to which a generation can be assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pointer {
    /// The generation that serves.
    Policy,
    /// The generation from which the next stage's updates start. It is moved together with the policy.
    Train,
    /// The reference policy of the next stage's loss. It is moved together with the policy: in sDPO the reference is the last promoted
    /// policy.
    Reference,
    /// The generation that judges. It is pinned: only an operator moves it, and no move of another pointer does.
    Judge,
    /// The generation that serves a share of the principals; equal to the policy if no canary is being tested.
    Canary,
}

stored_words!(
    Pointer, "pointer",
    Policy => "policy", Train => "train", Reference => "reference", Judge => "judge", Canary => "canary",
);

/// The pointers. Each is a generation's id, or `base`: the model without an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = PointersBody)]
pub struct Pointers {
    /// The version that serves.
    #[schema(value_type = String)]
    pub policy: GenerationId,
    /// The version from which the next stage starts. It moves with the policy.
    #[schema(value_type = String)]
    pub train: GenerationId,
    /// The reference policy of the next stage. It moves with the policy.
    #[schema(value_type = String)]
    pub reference: GenerationId,
    /// The version that judges calls and pairs. It moves only when an operator promotes a generation as judge.
    #[schema(value_type = String)]
    pub judge: GenerationId,
    /// The version that a share of the callers is served; the policy if there is no canary.
    #[schema(value_type = String)]
    pub canary: GenerationId,
}

/// A compare-and-swap of one pointer, which must be at `from`. If `to` = `from`, it is only a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointerMove {
    pub pointer: Pointer,
    pub from: GenerationId,
    pub to: GenerationId,
}

/// The generations, and the pointers to them.
#[derive(Debug)]
pub struct GenerationStore {
    pub(super) database: Arc<Database>,
}

impl GenerationStore {
    /// Returns all generations, newest first.
    pub async fn all(&self) -> Result<Vec<Generation>> {
        let found = query(
            "SELECT id, parent, reference, stage, manifest, gates, state, created_at \
             FROM generations ORDER BY created_at DESC, id",
        )
        .fetch_all(&mut self.database.reader().await?)
        .await?;
        found.iter().map(read).collect()
    }

    pub async fn get(&self, id: &GenerationId) -> Result<Option<Generation>> {
        let found = query(
            "SELECT id, parent, reference, stage, manifest, gates, state, created_at FROM generations WHERE id = $1",
        )
        .bind(id.as_str())
        .fetch_optional(&mut self.database.reader().await?)
        .await?;
        found.as_ref().map(read).transpose()
    }

    /// Returns the generations of all pointers. Before any training all of them are the base.
    pub async fn pointers(&self) -> Result<Pointers> {
        let mut found: HashMap<Pointer, GenerationId> = HashMap::new();
        for row in query("SELECT name, generation FROM pointers")
            .fetch_all(&mut self.database.reader().await?)
            .await?
        {
            let generation: String = row.get("generation")?;
            let pointer = Pointer::stored(row.get("name")?)?;
            found.insert(pointer, GenerationId::new(generation));
        }
        let mut at = |pointer: Pointer| {
            found
                .remove(&pointer)
                .ok_or_else(|| LogError::Corrupt(format!("there is no pointer `{pointer}`")))
        };
        Ok(Pointers {
            policy: at(Pointer::Policy)?,
            train: at(Pointer::Train)?,
            reference: at(Pointer::Reference)?,
            judge: at(Pointer::Judge)?,
            canary: at(Pointer::Canary)?,
        })
    }

    /// Moves pointers by compare-and-swap: all of them and an audit event in one transaction, or none.
    ///
    /// The new generation of the policy becomes promoted. If the policy goes back, to the base or to a generation that was promoted
    /// before, the old generation becomes rolled back.
    ///
    /// # Errors
    /// Errors with [`LogError::Conflict`] if a pointer is not at `from`, with [`LogError::NotFound`] for an unknown generation, and with
    /// [`LogError::Invalid`] for a generation whose files cannot be used.
    pub async fn move_pointers(
        &self,
        moves: &[PointerMove],
        actor: &str,
        reason: &str,
    ) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        move_within(transaction.connection(), moves, actor, reason).await?;
        commit_move(transaction).await
    }
}

/// Stores a generation as a candidate; see [`super::TrainerLease::insert_generation`].
pub(super) async fn insert(connection: &mut Connection, new: &NewGeneration) -> Result<()> {
    if new.id.is_base() {
        return Err(LogError::Invalid(
            "the base model cannot be stored as a trained generation".to_owned(),
        ));
    }
    if let Some(stage) = new.stage {
        require_open(connection, stage).await?;
    }
    let made = query(
        "INSERT INTO generations (id, parent, reference, stage, manifest, gates, state, created_at) \
         VALUES ($1, $2, $3, $4, $5, 'null', $6, $7) ON CONFLICT (id) DO NOTHING",
    )
    .bind(new.id.as_str())
    .bind(new.parent.as_str())
    .bind(new.reference.as_str())
    .bind(new.stage.map(|stage| stage.0))
    .bind(columns::to_json(&new.manifest)?)
    .bind(GenerationState::Candidate.as_str())
    .bind(now())
    .execute(connection)
    .await?;
    if made > 0 {
        let detail = json!({ "generation": new.id, "parent": new.parent, "stage": new.stage });
        events::append(connection, ACTOR, "generation.trained", detail).await?;
    }
    Ok(())
}

/// Stores the gates' results of a candidate; see [`super::TrainerLease::record_gates`].
pub(super) async fn record_gates(
    connection: &mut Connection,
    id: &GenerationId,
    gates: &Value,
    state: Option<GenerationState>,
) -> Result<()> {
    let stored = query("UPDATE generations SET gates = $1 WHERE id = $2")
        .bind(columns::to_json(gates)?)
        .bind(id.as_str())
        .execute(connection)
        .await?;
    if stored == 0 {
        return Err(unknown(id));
    }
    if let Some(state) = state {
        set_state(connection, id, state).await?;
    }
    let detail = json!({ "generation": id, "gates": gates, "state": state });
    events::append(connection, ACTOR, "generation.gated", detail).await
}

/// Commits a transaction that moved pointers.
pub(super) async fn commit_move(transaction: WriteTransaction) -> Result<()> {
    fault::point("log.pointer.before_commit");
    transaction.commit().await?;
    fault::point("log.pointer.after_commit");
    Ok(())
}

/// Moves pointers as [`GenerationStore::move_pointers`] does, in an open transaction.
pub(super) async fn move_within(
    connection: &mut Connection,
    moves: &[PointerMove],
    actor: &str,
    reason: &str,
) -> Result<()> {
    // The order is fixed, so that two servers that move the same pointers wait for each other and cannot deadlock.
    let mut moves = moves.to_vec();
    moves.sort_by_key(|one| one.pointer.as_str());
    let mut states: HashMap<&GenerationId, Option<GenerationState>> = HashMap::new();
    for one in &moves {
        swap(connection, one).await?;
        let state = match states.entry(&one.to) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => *new.insert(usable(connection, &one.to).await?),
        };
        if one.pointer == Pointer::Policy && one.from != one.to {
            let back = one.to.is_base() || state == Some(GenerationState::Promoted);
            set_state(connection, &one.to, GenerationState::Promoted).await?;
            if back {
                set_state(connection, &one.from, GenerationState::RolledBack).await?;
            }
        }
    }
    let moved: Vec<_> = moves
        .iter()
        .map(|one| json!({ "pointer": one.pointer, "from": one.from, "to": one.to }))
        .collect();
    let detail = json!({ "moves": moved, "reason": reason });
    events::append(connection, actor, "pointers.moved", detail).await
}

async fn swap(connection: &mut Connection, one: &PointerMove) -> Result<()> {
    let swapped = query("UPDATE pointers SET generation = $1 WHERE name = $2 AND generation = $3")
        .bind(one.to.as_str())
        .bind(one.pointer.as_str())
        .bind(one.from.as_str())
        .execute(connection)
        .await?;
    if swapped == 1 {
        return Ok(());
    }
    let found: String = query("SELECT generation FROM pointers WHERE name = $1")
        .bind(one.pointer.as_str())
        .fetch_value(connection)
        .await?;
    Err(LogError::Conflict {
        pointer: one.pointer,
        expected: one.from.clone(),
        found: GenerationId::new(found),
    })
}

/// Returns the state of a generation, which must be usable; none for the base.
async fn usable(connection: &mut Connection, id: &GenerationId) -> Result<Option<GenerationState>> {
    if id.is_base() {
        return Ok(None);
    }
    let state: Option<String> = query("SELECT state FROM generations WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional_value(connection)
        .await?;
    let Some(state) = state else {
        return Err(unknown(id));
    };
    match GenerationState::stored(&state)? {
        GenerationState::Failed => Err(LogError::Invalid(format!(
            "the files of generation {id} cannot be used"
        ))),
        state => Ok(Some(state)),
    }
}

/// Sets the state of a generation; has no effect on the base, which has no state.
async fn set_state(
    connection: &mut Connection,
    id: &GenerationId,
    state: GenerationState,
) -> Result<()> {
    query("UPDATE generations SET state = $1 WHERE id = $2")
        .bind(state.as_str())
        .bind(id.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

fn unknown(id: &GenerationId) -> LogError {
    LogError::NotFound {
        what: "generation",
        id: id.to_string(),
    }
}

fn read(row: &Row) -> Result<Generation> {
    let name = |column: &str| row.get::<String>(column).map(GenerationId::new);
    Ok(Generation {
        id: name("id")?,
        parent: name("parent")?,
        reference: name("reference")?,
        stage: row.get::<Option<i64>>("stage")?.map(StageId),
        manifest: columns::from_json(row.get("manifest")?)?,
        gates: columns::from_json(row.get("gates")?)?,
        state: GenerationState::stored(row.get("state")?)?,
        created_at: row.get("created_at")?,
    })
}
