"""A reward model, trained on the pairs of a round by the Bradley-Terry loss; how it scores clips is passed in."""
