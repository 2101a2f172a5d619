"""Networks and stacks as pictures, in notebooks too."""
