//! The insertion of many rows by one statement: a log's record may have thousands, and each statement is a round trip.

use serde_json::Value;

use crate::driver::Connection;
use crate::query::{List, Sql, query};

/// Inserts rows into a table. Each column has a list of values, one a row; all lists have the same length. The column `key` has one value
/// in all rows.
///
/// PostgreSQL binds each list as an array. SQLite binds the rows as JSON.
pub async fn insert_rows(
    connection: &mut Connection,
    table: &'static str,
    (key, value): (&'static str, &str),
    columns: Vec<(&'static str, List)>,
) -> sqlx::Result<()> {
    let (names, lists): (Vec<&str>, Vec<List>) = columns.into_iter().unzip();
    if lists.iter().all(List::is_empty) {
        return Ok(());
    }
    let into = format!("INSERT INTO {table} ({key}, {})", names.join(", "));
    let each = |value: &dyn Fn(usize) -> String| {
        let values: Vec<String> = (0..names.len()).map(value).collect();
        values.join(", ")
    };
    let insert = if connection.is_sqlite() {
        let values = each(&|at| format!("value ->> {at}"));
        let sql = format!("{into} SELECT $1, {values} FROM json_each($2)");
        let rows = Value::from(rows(lists)).to_string();
        query(Sql::Built(sql)).bind(value).bind(rows)
    } else {
        let arrays = each(&|at| format!("${}", at + 2));
        let sql = format!("{into} SELECT $1, * FROM UNNEST({arrays})");
        let insert = query(Sql::Built(sql)).bind(value);
        lists
            .into_iter()
            .fold(insert, |insert, list| insert.bind(list))
    };
    insert.execute(connection).await?;
    Ok(())
}

/// Returns the rows of columns, as JSON arrays.
fn rows(columns: Vec<List>) -> Vec<Value> {
    let mut columns: Vec<_> = columns.into_iter().map(values).collect();
    std::iter::from_fn(|| {
        let row: Option<Vec<Value>> = columns.iter_mut().map(Iterator::next).collect();
        row.map(Value::from)
    })
    .collect()
}

fn values(column: List) -> std::vec::IntoIter<Value> {
    let values: Vec<Value> = match column {
        List::Integers(column) => column.into_iter().map(Value::from).collect(),
        List::Reals(column) => column.into_iter().map(Value::from).collect(),
        List::Texts(column) => column.into_iter().map(Value::from).collect(),
    };
    values.into_iter()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::driver::Pool;

    #[tokio::test]
    async fn json_keeps_every_value_of_a_row() {
        let pool = Pool::new("sqlite::memory:", Duration::from_secs(1)).unwrap();
        let mut connection = pool.connect().await.unwrap();
        connection
            .run("CREATE TABLE kept (record_id TEXT, whole BIGINT, real DOUBLE PRECISION, text TEXT)")
            .await
            .unwrap();
        let reals = (0..20_000).map(|_| f32::from_bits(rand::random()));
        let reals: Vec<f64> = reals
            .filter(|real| real.is_finite())
            .map(f64::from)
            .collect();
        let wholes: Vec<i64> = reals.iter().map(|_| rand::random()).collect();
        let texts: Vec<String> = wholes
            .iter()
            .map(|whole| format!("[\"ä\\{whole}\"]"))
            .collect();
        let columns = vec![
            ("whole", List::Integers(wholes.clone())),
            ("real", List::Reals(reals.clone())),
            ("text", List::Texts(texts.clone())),
        ];
        insert_rows(&mut connection, "kept", ("record_id", "one"), columns)
            .await
            .unwrap();
        let rows = query("SELECT * FROM kept ORDER BY rowid")
            .fetch_all(&mut connection)
            .await
            .unwrap();
        assert_eq!(rows.len(), reals.len());
        for (at, row) in rows.iter().enumerate() {
            assert_eq!(row.get::<&str>("record_id").unwrap(), "one");
            assert_eq!(row.get::<i64>("whole").unwrap(), wholes[at]);
            let real: f64 = row.get("real").unwrap();
            assert_eq!(real.to_bits(), reals[at].to_bits(), "{}", reals[at]);
            assert_eq!(row.get::<&str>("text").unwrap(), texts[at]);
        }
    }
}
