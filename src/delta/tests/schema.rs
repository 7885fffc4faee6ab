//! Changes of the schema: which fields are the same as before, and which are not.

use lance::dataset::{ColumnAlteration, NewColumnTransform};

use super::*;

const REPLACED: Delta = Delta::Everything(FullReason::InputReplaced);

impl Table {
    /// Adds an Int64 column of NULLs, which writes no data.
    async fn add_nulls(&mut self, name: &str) {
        let schema = Schema::new(vec![Field::new(name, DataType::Int64, true)]);
        self.ds
            .add_columns(NewColumnTransform::AllNulls(Arc::new(schema)), None, None)
            .await
            .unwrap();
    }

    /// Adds a column computed from others, in files of its own.
    async fn add_computed(&mut self, name: &str, expression: &str) {
        let expressions = vec![(name.to_string(), expression.to_string())];
        self.ds
            .add_columns(NewColumnTransform::SqlExpressions(expressions), None, None)
            .await
            .unwrap();
    }

    async fn alter(&mut self, alteration: ColumnAlteration) {
        self.ds.alter_columns(&[alteration]).await.unwrap();
    }

    async fn rename(&mut self, from: &str, to: &str) {
        self.alter(ColumnAlteration::new(from.into()).rename(to.into()))
            .await;
    }

    /// The delta for fields as they were recorded some time before.
    async fn delta_of(&self, from: u64, fields: &[FieldIdentity]) -> Delta {
        changes(&self.ds, &self.stamp(from).await, fields)
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn a_field_dropped_and_added_again_is_replaced() {
    for compact in [false, true] {
        for own_file in [false, true] {
            let mut t = Table::new(100, 50).await;
            let name = if own_file { "x" } else { "v" };
            if own_file {
                t.add_computed("x", "v + 7").await;
            }
            let (from, recorded) = (t.version(), t.fields(&[name]));
            t.ds.drop_columns(&[name]).await.unwrap();
            if compact {
                t.compact(1000).await;
            }
            t.add_nulls(name).await;
            let case = format!("compact {compact}, own file {own_file}");
            assert_eq!(t.delta_of(from, &recorded).await, REPLACED, "{case}");
            // Nor is a definition that recorded the new field content with the old.
            let now = t.fields(&[name]);
            assert_eq!(t.delta_of(from, &now).await, REPLACED, "{case}");
        }
    }
}

#[tokio::test]
async fn a_field_added_again_with_the_id_it_had_is_replaced() {
    let mut t = Table::new(100, 50).await;
    t.add_computed("x", "v + 7").await;
    let (from, recorded) = (t.version(), t.fields(&["x"]));
    t.ds.drop_columns(&["x"]).await.unwrap();
    t.compact(1000).await;
    t.add_nulls("x").await;
    assert_eq!(t.fields(&["x"]), recorded, "Lance gives the id away again");
    assert_eq!(t.delta_of(from, &recorded).await, REPLACED);
}

#[tokio::test]
async fn a_dropped_field_is_replaced() {
    let mut t = Table::new(100, 50).await;
    let recorded = t.fields(&["v"]);
    t.ds.drop_columns(&["v"]).await.unwrap();
    assert_eq!(t.delta_of(1, &recorded).await, REPLACED);
}

#[tokio::test]
async fn a_cast_field_is_replaced() {
    let mut t = Table::new(100, 50).await;
    let recorded = t.fields(&["v"]);
    t.alter(ColumnAlteration::new("v".into()).cast_to(DataType::Int32))
        .await;
    let cast = t.version();
    assert_eq!(t.delta_of(1, &recorded).await, REPLACED);
    assert_eq!(t.delta_of(1, &t.fields(&["v"])).await, REPLACED);
    t.unchanged(1, &["text"]).await;
    // There and back: the type is the old one, the values need not be.
    t.alter(ColumnAlteration::new("v".into()).cast_to(DataType::Int64))
        .await;
    assert_eq!(t.delta_of(1, &recorded).await, REPLACED);
    assert_eq!(t.delta_of(cast, &t.fields(&["v"])).await, REPLACED);
    let now = t.version();
    t.update("id = 1", "v", "2").await;
    t.checked(now, &["v"]).await;
}

#[tokio::test]
async fn a_field_whose_child_was_cast_is_replaced() {
    let mut t = Table::new(100, 50).await;
    let recorded = t.fields(&["point"]);
    t.alter(ColumnAlteration::new("point.x".into()).cast_to(DataType::Float32))
        .await;
    assert_eq!(t.delta_of(1, &recorded).await, REPLACED);
    assert_eq!(t.delta_of(1, &t.fields(&["point"])).await, REPLACED);
    t.unchanged(1, &["v"]).await;
}

#[tokio::test]
async fn a_renamed_field_is_the_same_under_its_new_name() {
    for compact in [false, true] {
        let mut t = Table::new(100, 50).await;
        let recorded = t.fields(&["v"]);
        t.update("id = 1", "v", "2").await;
        t.rename("v", "w").await;
        if compact {
            t.compact(1000).await;
        }
        t.update("id = 2", "w", "2").await;
        let changes = t.checked(1, &["w"]).await.changes;
        assert_eq!(changes.updated, [1, 2].into_iter().collect());
        assert_eq!(
            t.delta_of(1, &recorded).await,
            REPLACED,
            "the old name is gone"
        );
    }
}

#[tokio::test]
async fn a_field_renamed_there_and_back_is_the_same() {
    let mut t = Table::new(100, 50).await;
    t.rename("v", "w").await;
    t.update("id = 1", "w", "2").await;
    t.rename("w", "v").await;
    assert_eq!(t.checked(1, &["v"]).await.changes.updated.len(), 1);
}

#[tokio::test]
async fn fields_that_swapped_names_are_told_apart() {
    let mut t = Table::new(100, 50).await;
    t.add_computed("x", "v + 7").await;
    let (from, recorded) = (t.version(), t.fields(&["v"]));
    t.rename("v", "tmp").await;
    t.rename("x", "v").await;
    t.rename("tmp", "x").await;
    assert_eq!(t.delta_of(from, &recorded).await, REPLACED);
    t.unchanged(from, &["v", "x"]).await;
}

#[tokio::test]
async fn another_column_added_or_dropped_changes_nothing() {
    let mut t = Table::new(100, 50).await;
    t.add_nulls("a").await;
    t.add_computed("b", "v * 2").await;
    t.ds.drop_columns(&["a", "text"]).await.unwrap();
    t.unchanged(1, &["v", "point"]).await;
    t.compact(1000).await;
    t.add_nulls("text").await;
    t.unchanged(1, &["v", "point"]).await;
}

#[tokio::test]
async fn a_field_that_may_be_null_or_not_is_the_same() {
    let mut t = Table::new(100, 50).await;
    let recorded = t.fields(&["v"]);
    t.alter(ColumnAlteration::new("v".into()).set_nullable(false))
        .await;
    assert_eq!(t.fields(&["v"]), recorded);
    t.unchanged(1, &["v"]).await;
}

#[tokio::test]
async fn a_field_that_was_not_there_at_first_is_replaced() {
    let mut t = Table::new(100, 50).await;
    t.add_computed("x", "v + 7").await;
    assert_eq!(t.delta_of(1, &t.fields(&["x"])).await, REPLACED);
    t.unchanged(2, &["x"]).await;
}

#[tokio::test]
async fn an_unknown_field_has_no_identity() {
    let t = Table::new(10, 50).await;
    assert!(FieldIdentity::of(&t.ds, "V").is_none());
    assert!(FieldIdentity::of(&t.ds, "point.x").is_none());
    let field = t.field("v");
    assert_eq!(
        (field.name.as_str(), field.data_type.as_str()),
        ("v", "int64")
    );
    let json = serde_json::to_string(&field).unwrap();
    assert_eq!(serde_json::from_str::<FieldIdentity>(&json).unwrap(), field);
}
