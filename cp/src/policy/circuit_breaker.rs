//! MeshCircuitBreaker: how much a destination is given.

use super::rules::Policy;
use crate::resource::{CircuitBreaker, MeshCircuitBreaker, RuleMatch, TargetRef};

impl Policy for MeshCircuitBreaker {
    type Conf = CircuitBreaker;

    fn target_ref(&self) -> Option<&TargetRef> {
        self.target_ref.as_ref()
    }

    fn to(&self) -> Vec<(&TargetRef, &CircuitBreaker)> {
        self.to.iter().map(|item| (&item.target_ref, &item.default)).collect()
    }

    fn inbound(&self) -> Vec<(&[RuleMatch], &CircuitBreaker)> {
        if self.rules.is_empty() {
            return self.from.iter().map(|item| (&[][..], &item.default)).collect();
        }
        self.rules.iter().map(|rule| (&[][..], &rule.default)).collect()
    }
}
