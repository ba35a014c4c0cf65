"""Tables, plots and a page over the judged and scored answers of several systems."""
