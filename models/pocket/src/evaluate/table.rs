//! The report as a table.

use std::fmt::Write;

use super::report::PocketReport;
use selfjudge::eval::Estimate;

impl PocketReport {
    /// Returns the report as a table in percent.
    pub fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        let own = &self.own;
        writeln!(
            out,
            "{} held-out instructions, {} samples each for each of {} seeds; percent, 95 % intervals over instructions",
            self.options.instructions,
            self.options.samples,
            own.by_seed.len()
        )?;
        writeln!(out, "\nown samples")?;
        writeln!(out, "  sampled (T=1)         {}", show(&own.sampled))?;
        let seeds: Vec<String> = own
            .by_seed
            .iter()
            .map(|v| format!("{:.1}", 100.0 * v))
            .collect();
        writeln!(out, "    by seed             {}", seeds.join("  "))?;
        writeln!(out, "    bare answers        {}", optional(&own.brief))?;
        writeln!(out, "    with steps          {}", optional(&own.with_steps))?;
        writeln!(out, "  greedy                {}", show(&own.greedy))?;
        writeln!(out, "  judge accuracy        {}", optional(&own.judge))?;
        writeln!(
            out,
            "  orders disagree       {}",
            optional(&own.disagreement)
        )?;
        writeln!(out, "  label mass            {}", optional(&own.label_mass))?;
        writeln!(
            out,
            "\n{:<10} {:>20} {:>20} {:>20}",
            "kind", "sampled", "greedy", "judge"
        )?;
        for row in &own.by_kind {
            writeln!(
                out,
                "{:<10} {:>20} {:>20} {:>20}",
                row.kind.name(),
                show(&row.sampled),
                show(&row.greedy),
                optional(&row.judge)
            )?;
        }
        writeln!(
            out,
            "\n{:<10} {:>20} {:>20} {:>20} {:>20}",
            "best of N", "tournament", "random", "oracle", "gain"
        )?;
        for row in &own.best_of {
            writeln!(
                out,
                "{:<10} {:>20} {:>20} {:>20} {:>20}",
                row.n,
                show(&row.tournament),
                show(&row.random),
                show(&row.oracle),
                show(&row.gain)
            )?;
        }
        writeln!(
            out,
            "\n{:<36} {:>20} {:>20} {:>20}",
            "judge under", "agrees with program", "orders disagree", "label mass"
        )?;
        for row in &self.principles {
            writeln!(
                out,
                "{:<36} {:>20} {:>20} {:>20}",
                row.name,
                show(&row.agreement),
                show(&row.disagreement),
                show(&row.label_mass)
            )?;
            for (name, agreement) in &row.parts {
                writeln!(out, "  {name:<34} {:>20}", show(agreement))?;
            }
        }
        writeln!(
            out,
            "\n{:<28} {:>20} {:>20} {:>20}",
            "system message", "followed", "so unasked", "accuracy"
        )?;
        for row in &self.following {
            writeln!(
                out,
                "{:<28} {:>20} {:>20} {:>20}",
                row.sentence,
                show(&row.asked),
                show(&row.unasked),
                show(&row.accuracy)
            )?;
        }
        if !self.thresholds.is_empty() {
            writeln!(out, "\nbounds")?;
        }
        for t in &self.thresholds {
            let value = t
                .value
                .map_or("none".to_string(), |v| format!("{:.1}", 100.0 * v));
            let least = t
                .at_least
                .map(|b| format!(" >= {:.0}", 100.0 * b))
                .unwrap_or_default();
            let most = t
                .at_most
                .map(|b| format!(" <= {:.0}", 100.0 * b))
                .unwrap_or_default();
            let verdict = if t.kept { "pass" } else { "FAIL" };
            writeln!(out, "  {verdict}  {:<44} {value:>6} {least}{most}", t.what)?;
        }
        Ok(())
    }
}

fn show(estimate: &Estimate) -> String {
    format!(
        "{:.1} [{:.1}, {:.1}]",
        100.0 * estimate.mean,
        100.0 * estimate.low,
        100.0 * estimate.high
    )
}

fn optional(estimate: &Option<Estimate>) -> String {
    estimate.as_ref().map_or("none".to_string(), show)
}
