"""The server app: an ordinary one."""

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from task import CLIENTS, LR, build

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Two rounds of averaging."""
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    strategy.start(
        grid=grid, initial_arrays=ArrayRecord(build().state_dict()), num_rounds=2, train_config=ConfigRecord({"lr": LR})
    )
