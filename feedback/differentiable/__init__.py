"""The judge as a function that torch can differentiate: frames with gradient in, the loss of its wanted answers out."""
